"""The web console: static files and the routes that serve them."""
