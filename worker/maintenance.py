"""Upkeep that any courier may do at any time: rescue jobs whose worker went silent, ring for jobs that wait unheard."""

import structlog
from celery import Celery
from redis import Redis

from shared import broker, events, fleet, jobs, shares
from shared.db import Database
from shared.states import JobState

# Enough to wake every slot of a large fleet at once; the next round rings for the rest.
MAX_RINGS = 1000

log = structlog.get_logger(__name__)


def rescue(db: Database, redis: Redis) -> list[JobState]:
    """Take back jobs whose lease ran out. Returns the state that each has now."""
    with db.transaction() as session:
        rescued = jobs.rescue(session)
        fleet.forget(session)
        shares.unpark(session)
    for job_id, state in rescued:
        log.warning("job.rescued", job_id=str(job_id), state=state)
        events.publish(redis, events.JobEvent(job_id, state))
    return [state for _, state in rescued]


def reconcile(db: Database, redis: Redis, celery: Celery) -> int:
    """Ring for queued jobs that outnumber their doorbells, as after a loss of Redis. Returns how often."""
    with db.transaction() as session:
        backlog = jobs.backlog(session)
    rung = 0
    for checkpoint, queued in backlog.items():
        missing = min(queued - broker.waiting_doorbells(redis, checkpoint), MAX_RINGS)
        if missing > 0 and broker.ring(celery, checkpoint, missing):
            rung += missing
    if rung:
        log.info("doorbells.rung", count=rung)
    return rung
