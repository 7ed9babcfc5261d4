"""Queries over jobs, and retries."""
