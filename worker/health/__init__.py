"""Self-examination of a worker and its GPU."""
