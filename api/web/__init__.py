"""The console: a page of static files, and the routes that serve them."""
