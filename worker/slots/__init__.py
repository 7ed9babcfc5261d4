"""Celery slots: claim a job, have it rendered, store its images, end it."""
