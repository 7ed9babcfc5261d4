"""Long polls and event streams on one Redis subscription per process."""
