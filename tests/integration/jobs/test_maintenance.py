"""Upkeep on the real engines: what is lost comes back."""

from datetime import timedelta

from celery import Celery
from redis import Redis
from sqlalchemy import func, select, update

from shared.fleet import registry
from shared.infra import broker
from shared.infra.db import Database
from shared.infra.tables import CanaryRow, JobRow, PromiseRow, WorkerRow
from shared.jobs import idempotency, lifecycle
from shared.vocabulary.states import JobState
from tests.support.factories import DEMO
from tests.support.jobs import submit, submit_many
from worker.courier import maintenance
from worker.health import canaries
from worker.health.canaries import CanaryResult


def test_lost_doorbells_ring_again_and_only_the_lost(db: Database, redis: Redis, celery: Celery) -> None:
    submit_many(db, 5)
    broker.ring(celery, DEMO, 2)
    assert maintenance.reconcile(db, redis, celery) == 3
    assert broker.waiting_doorbells(redis, DEMO) == 5
    assert maintenance.reconcile(db, redis, celery) == 0


def test_a_wiped_redis_is_rung_back(db: Database, redis: Redis, celery: Celery) -> None:
    submit_many(db, 3)
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


def test_only_workers_that_fell_silent_long_ago_are_forgotten(db: Database, redis: Redis) -> None:
    with db.transaction() as session:
        for name in ("lively", "silent"):
            registry.announce(session, worker_id=name, checkpoint=DEMO, size_bytes=1, hostname="h", device="d", slots=1)
        long_ago = func.now() - registry.FORGET_AFTER - timedelta(seconds=1)
        session.execute(update(WorkerRow).where(WorkerRow.id == "silent").values(seen_at=long_ago))
    maintenance.rescue_lost_jobs(db, redis, lease_s=20)
    with db.transaction() as session:
        assert set(session.scalars(select(WorkerRow.id))) == {"lively", "silent"}  # a rescue rescues, and no more
    maintenance.forget_silent_workers(db)
    with db.transaction() as session:
        assert session.scalars(select(WorkerRow.id)).all() == ["lively"]


def test_only_idempotency_keys_that_have_run_out_are_forgotten(db: Database) -> None:
    job_id = submit(db)
    with db.transaction() as session:
        for name in ("fresh", "old"):
            session.add(PromiseRow(owner="anonymous", key=name, digest="", job_id=job_id))
        session.flush()
        long_ago = func.now() - timedelta(seconds=idempotency.KEPT_S + 1)
        session.execute(update(PromiseRow).where(PromiseRow.key == "old").values(created_at=long_ago))
    maintenance.forget_idempotency_keys(db)
    with db.transaction() as session:
        assert session.scalars(select(PromiseRow.key)).all() == ["fresh"]


def test_only_old_canaries_are_forgotten(db: Database) -> None:
    with db.transaction() as session:
        for name in ("fresh", "old"):
            canaries.record(session, "key", name, CanaryResult("weights", b"picture"))
        long_ago = func.now() - canaries.FORGET_AFTER - timedelta(seconds=1)
        session.execute(update(CanaryRow).where(CanaryRow.worker_id == "old").values(shown_at=long_ago))
    maintenance.forget_canaries(db)
    with db.transaction() as session:
        assert session.scalars(select(CanaryRow.worker_id)).all() == ["fresh"]
