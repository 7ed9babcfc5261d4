"""What stands between the wire and the routes."""
