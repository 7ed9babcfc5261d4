"""The front desk: HTTP in, JSON out, and the `farm` command. Never loads torch, never imports the worker."""
