"""Upkeep of jobs, by any courier at any time: rescue, timeouts, missing doorbells, retention, sweeps of the storage."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import starmap
from typing import TypeVar
from uuid import UUID

import structlog
from celery import Celery
from redis import Redis
from sqlalchemy.orm import Session

from shared.fleet import holdings, registry, weights_bucket
from shared.infra import broker, events
from shared.infra.db import Database
from shared.infra.storage import IMAGES, SNAPSHOTS, Storage, snapshot_key, upload_key
from shared.jobs import fair_queue, idempotency, inputs, outbox, removal, rescue, uploads
from shared.vocabulary.states import JobState
from worker.fleet import demand
from worker.health import canaries

# Enough to wake every slot of a large fleet at once; the next round rings for the rest.
MAX_RINGS = 1000
SWEPT_AT_ONCE = 200
PAGES_AT_ONCE = 100  # of a thousand keys each: a courier walks past 14 million objects a day

log = structlog.get_logger(__name__)
T = TypeVar("T")


def rescue_lost_jobs(db: Database, redis: Redis, *, lease_s: float) -> list[JobState]:
    """Requeue or fail jobs whose lease of `lease_s` seconds ran out. Returns the state that each has now."""
    with db.transaction() as session:
        rescued = rescue.rescue_lost(session, lease_s=lease_s)
    for job_id, state in rescued:
        log.warning("job.rescued", job_id=str(job_id), state=state)
    events.publish(redis, *starmap(events.JobEvent, rescued))
    return [state for _, state in rescued]


def unpark_jobs(db: Database) -> int:
    """Make parked jobs claimable again where their key's limit has left room. Returns how many."""
    with db.transaction() as session:
        return fair_queue.unpark(session)


def forget_silent_workers(db: Database) -> None:
    """Delete the rows of workers whose heartbeats stopped long ago."""
    with db.transaction() as session:
        registry.forget(session)


def measure_demand(db: Database) -> None:
    """Bring up to date how much each checkpoint is wanted."""
    with db.transaction() as session:
        demand.measure(session)


def take_stock(db: Database, storage: Storage) -> None:
    """Let jobs name the checkpoints of the bucket, whether or not a worker has ever been there."""
    files = weights_bucket.newest(weights_bucket.look(storage, f"{weights_bucket.CHECKPOINT}/"))
    with db.transaction() as session:
        holdings.stock(session, files.values())


def forget_idempotency_keys(db: Database) -> None:
    """Delete the idempotency keys that have run out."""
    with db.transaction() as session:
        idempotency.forget(session)


def forget_canaries(db: Database) -> None:
    """Delete old canary results: a worker of today is not to be compared with them."""
    with db.transaction() as session:
        canaries.forget(session)


def end_overdue_jobs(db: Database, redis: Redis) -> list[JobState]:
    """Time out attempts that run too long and expire jobs that waited too long. Returns the state that each has now."""
    with db.transaction() as session:
        ended = rescue.end_overdue(session)
        ended += [(job_id, JobState.EXPIRED) for job_id in rescue.expire(session)]
    for job_id, state in ended:
        log.info("job.time_is_up", job_id=str(job_id), state=state)
    events.publish(redis, *starmap(events.JobEvent, ended))
    return [state for _, state in ended]


def reconcile(db: Database, redis: Redis, celery: Celery) -> int:
    """Ring for queued jobs that outnumber their doorbells, as after a loss of Redis. Returns how many times."""
    with db.transaction() as session:
        backlog = rescue.backlog(session)
    rung = 0
    for checkpoint, queued in backlog.items():
        missing = min(queued - broker.waiting_doorbells(redis, checkpoint), MAX_RINGS)
        if missing > 0 and broker.ring(celery, checkpoint, missing):
            rung += missing
    if rung:
        log.info("doorbells.rung", count=rung)
    return rung


def record_progress(db: Database, *, every_s: float) -> int:
    """Write progress events of running jobs for the webhooks that subscribe to them. Returns how many."""
    with db.transaction() as session:
        return outbox.record_progress(session, every_s=every_s)


def forget_events(db: Database, *, older_than_s: float) -> int:
    """Delete old events and their deliveries, batch by batch. Returns how many events."""
    forgotten = 0
    while True:
        with db.transaction() as session:
            batch = outbox.purge(session, older_than_s=older_than_s)
        forgotten += batch
        if batch < outbox.PURGE_BATCH:
            return forgotten


def remove_aged(db: Database, storage: Storage, *, days: float) -> int:
    """Remove the jobs that ended more than `days` ago; 0 keeps all. Returns how many."""
    if not days:
        return 0
    return _sweep(db, storage, partial(removal.aged, days=days), removal.objects, removal.remove, at_once=removal.BATCH)


def sweep_litter(db: Database, storage: Storage) -> int:
    """Delete the objects of unsuccessful attempts whose jobs have ended. Returns how many jobs."""
    return _sweep(db, storage, removal.littered, removal.litter, removal.mark_swept, at_once=removal.BATCH)


def sweep_snapshots(db: Database, storage: Storage) -> int:
    """Delete the snapshots of jobs that have ended. Returns how many jobs."""

    def keys(ended: tuple[UUID, int]) -> list[str]:
        job_id, last = ended
        return [snapshot_key(job_id, attempt) for attempt in range(1, last + 1)]

    def forget(session: Session, ended: Sequence[tuple[UUID, int]]) -> None:
        rescue.forget_snapshots(session, [job_id for job_id, _ in ended])

    find = partial(rescue.ended_with_snapshots, limit=SWEPT_AT_ONCE)
    return _sweep(db, storage, find, keys, forget, at_once=SWEPT_AT_ONCE)


def sweep_uploads(db: Database, storage: Storage) -> int:
    """Delete uploads older than a day. Returns how many."""

    def keys(upload_id: UUID) -> list[str]:
        return [upload_key(upload_id)]

    return _sweep(db, storage, uploads.expired, keys, uploads.forget, at_once=uploads.FORGOTTEN_AT_ONCE)


def _sweep(
    db: Database,
    storage: Storage,
    find: Callable[[Session], Sequence[T]],
    keys: Callable[[T], Iterable[str]],
    settle: Callable[[Session, Sequence[T]], None],
    *,
    at_once: int,
) -> int:
    """Delete objects batch by batch, then settle their rows: one that is interrupted is found again. Returns how many rows."""
    swept = 0
    while True:
        with db.transaction() as session:
            found = find(session)
        storage.delete_all([key for one in found for key in keys(one)])
        with db.transaction() as session:
            settle(session, found)
        swept += len(found)
        if len(found) < at_once:
            return swept


def sweep_inputs(db: Database, storage: Storage) -> int:
    """Delete input pictures that no job starts from any more. Returns how many."""
    swept = 0
    while True:
        with db.transaction() as session:  # open while objects go: who stores the same picture again waits for its end
            due = inputs.due(session)
            unused = inputs.unused(session, due)
            storage.delete_all(unused)
            inputs.settle(session, due, unused)
        swept += len(unused)
        if len(due) < inputs.JUDGED_AT_ONCE:
            return swept


def sweep_orphans(db: Database, storage: Storage, places: dict[str, str]) -> int:
    """Walk on through the bucket and delete objects that stale attempts wrote after their jobs were swept. Returns how many.

    `places` holds the last key of the walk by prefix, and is updated.
    """
    return sum(_walk(db, storage, prefix, places) for prefix in (IMAGES, SNAPSHOTS))


def _walk(db: Database, storage: Storage, prefix: str, places: dict[str, str]) -> int:
    swept = 0
    for _ in range(PAGES_AT_ONCE):
        keys = storage.keys(prefix, after=places.get(prefix, ""))
        with db.transaction() as session:
            orphans = removal.orphans(session, keys)
        storage.delete_all(orphans)
        swept += len(orphans)
        places[prefix] = keys[-1] if keys else ""
        if not keys:  # only that is the end: a store may answer fewer than it was asked for
            break
    if swept:
        log.info("orphans.swept", prefix=prefix, objects=swept)
    return swept
