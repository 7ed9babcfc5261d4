"""Clients of Postgres, Redis, the object store and outside HTTP; logs, metrics and traces."""
