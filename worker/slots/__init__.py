"""Celery slots: claim a job, render and store its images, end the attempt."""
