"""API keys: the table, and a cache of those seen lately."""
