"""Celery workers: `gpu` renders jobs, `cpu` is the courier. The api imports neither."""
