"""The floor: Celery workers. `gpu` renders, `cpu` keeps house; neither is imported by the api."""
