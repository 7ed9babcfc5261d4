"""API keys: the table, and a cache of keys."""
