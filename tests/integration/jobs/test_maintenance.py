"""Upkeep on the real engines: what is lost comes back."""

from datetime import timedelta

from celery import Celery
from redis import Redis
from sqlalchemy import func, update

from shared.infra import broker
from shared.infra.db import Database, JobRow
from shared.jobs import lifecycle
from shared.vocabulary.states import JobState
from tests.support.factories import DEMO, params
from worker.courier import maintenance


def submit(db: Database, count: int = 1) -> None:
    with db.transaction() as session:
        for _ in range(count):
            lifecycle.submit(session, params(), max_attempts=3)


def test_lost_doorbells_ring_again_and_only_the_lost(db: Database, redis: Redis, celery: Celery) -> None:
    submit(db, 5)
    broker.ring(celery, DEMO, 2)
    assert maintenance.reconcile(db, redis, celery) == 3
    assert broker.waiting_doorbells(redis, DEMO) == 5
    assert maintenance.reconcile(db, redis, celery) == 0


def test_a_wiped_redis_is_rung_back(db: Database, redis: Redis, celery: Celery) -> None:
    submit(db, 3)
    broker.ring(celery, DEMO, 3)
    redis.flushall()
    assert maintenance.reconcile(db, redis, celery) == 3


def test_a_silent_workers_job_is_queued_again(db: Database, redis: Redis) -> None:
    submit(db)
    with db.transaction() as session:
        claim = lifecycle.claim_next(session, DEMO, "w", lease_s=20)
    assert claim is not None
    assert maintenance.rescue_lost_jobs(db, redis, lease_s=20) == []
    with db.transaction() as session:
        session.execute(update(JobRow).values(lease_until=func.now() - timedelta(seconds=1)))
    assert maintenance.rescue_lost_jobs(db, redis, lease_s=20) == [JobState.QUEUED]
    with db.transaction() as session:
        assert lifecycle.get(session, claim.job_id).state == JobState.QUEUED
