"""The HTTP API, its Python client and the `farm` command. Never loads torch, never imports the worker."""
