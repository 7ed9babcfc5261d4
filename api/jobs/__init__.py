"""Reading and retrying jobs."""
