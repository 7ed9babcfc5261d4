"""Postgres, Redis, the object store, HTTP to the outside, logs, metrics and traces."""
