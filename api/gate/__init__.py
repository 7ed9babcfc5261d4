"""What stands between the wire and the routes: proxies, the farm's names, pages of other sites, methods, headers, prefix."""
