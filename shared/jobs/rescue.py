"""Rescue of jobs whose worker is lost, run timeouts and expiry. Couriers call these every few seconds.

Several couriers may run them at once: each locks the rows that it decides on. `lifecycle` moves the running jobs, fenced by their
attempt; this module itself writes the jobs table to expire queued ones and to clear `snapshot_attempt`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Row, Select, case, exists, func, literal, not_, select, text, update
from sqlalchemy.orm import Session

from shared.errors import RunTimeout, WorkerLost
from shared.infra.tables import JobRow, WorkerRow
from shared.jobs import claims, fair_queue, lifecycle, outbox
from shared.jobs.lifecycle import Attempt
from shared.vocabulary.states import JobState

# Longer than one write to the storage may take.
LATE_WRITE = timedelta(seconds=60)
Moved = list[tuple[UUID, JobState]]


def rescue_lost(session: Session, *, lease_s: float, limit: int = 500) -> Moved:
    """Take back the jobs of silent workers: requeue them, or fail those without attempts left.

    A lost worker's leases end up to a heartbeat apart. When the first has ended, all its jobs are taken at once: only their
    number tells whether a job was alone. A live worker that let a lease run out never knew of that attempt, so that is no
    fault.
    """
    half = timedelta(seconds=lease_s / 2)
    is_alive = exists().where(WorkerRow.id == JobRow.worker_id, WorkerRow.seen_at > func.now() - half)
    silent = select(JobRow.worker_id).where(JobRow.state == JobState.RUNNING, JobRow.lease_until < func.now())
    lost = (
        _held(is_alive)
        .where(JobRow.worker_id.in_(silent.limit(limit)))
        .where(JobRow.lease_until < func.now() + case((is_alive, timedelta()), else_=half))
    )
    return _take_back(session, session.execute(lost).all())


def take_over(session: Session, worker_id: str) -> Moved:
    """Take back at once the jobs that the former process of a restarted worker held."""
    held = _held(literal(False)).where(JobRow.worker_id == worker_id)
    return _take_back(session, session.execute(held).all())


def end_overdue(session: Session, *, limit: int = 500) -> Moved:
    """Fail attempts that run longer than `timeout_s` of their job. Their workers notice at the next heartbeat."""
    ran = func.extract("epoch", func.now() - JobRow.started_at)
    overdue = session.execute(
        select(JobRow.id, JobRow.attempt, JobRow.timeout_s)
        .where(JobRow.state == JobState.RUNNING, JobRow.timeout_s.is_not(None), ran > JobRow.timeout_s)
        .limit(limit)
    ).all()
    moved = []
    for job_id, attempt, timeout_s in overdue:
        error = RunTimeout(f"Attempt {attempt} ran for longer than the {timeout_s:g} s that the job allows.")
        moved.append((job_id, lifecycle.fail(session, Attempt(job_id, attempt), error)))
    return [(job_id, state) for job_id, state in moved if state is not None]


def expire(session: Session, *, limit: int = 500) -> Sequence[UUID]:
    """Expire queued jobs that no worker has claimed in time. Returns their ids."""
    late = (
        select(JobRow.id)
        .where(JobRow.state == JobState.QUEUED, JobRow.expires_at <= func.now())
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    ended = (
        update(JobRow)
        .where(JobRow.id.in_(late.scalar_subquery()))
        .values(state=JobState.EXPIRED, version=JobRow.version + 1, finished_at=func.now())
        .returning(JobRow.id)
        .execution_options(synchronize_session=False)
    )
    expired = session.execute(ended).scalars().all()
    outbox.record(session, *expired)
    fair_queue.give_back(session, expired)
    return expired


def ended_with_snapshots(session: Session, *, limit: int) -> Sequence[tuple[UUID, int]]:
    """Return jobs that ended over `LATE_WRITE` ago, with the last attempt that kept a snapshot."""
    ended = JobRow.finished_at < func.now() - LATE_WRITE
    kept = select(JobRow.id, JobRow.snapshot_attempt).where(JobRow.snapshot_attempt.is_not(None), ended)
    return [(job_id, attempt) for job_id, attempt in session.execute(kept.limit(limit)) if attempt]


def forget_snapshots(session: Session, job_ids: Sequence[UUID]) -> None:
    """Record that the snapshots of these jobs are deleted."""
    session.execute(
        update(JobRow)
        .where(JobRow.id.in_(job_ids))
        .values(snapshot_attempt=None)
        .execution_options(synchronize_session=False)
    )


def backlog(session: Session) -> Mapping[str, int]:
    """Count the queued jobs that could be claimed now, by checkpoint."""
    claimable = select(JobRow.checkpoint, func.count()).where(
        JobRow.state == JobState.QUEUED,
        not_(JobRow.parked),
        JobRow.owner.not_in(fair_queue.blocked_owners()),
        text(claims.IS_DUE),
    )
    counted = session.execute(claimable.group_by(JobRow.checkpoint))
    return dict(counted.all())


def _held(is_alive: ColumnElement[bool]) -> Select[UUID, int, str | None, bool]:
    return (
        select(JobRow.id, JobRow.attempt, JobRow.worker_id, is_alive)
        .where(JobRow.state == JobState.RUNNING)
        # In one order, so that two couriers wait for each other instead of seeing half a worker each.
        .order_by(JobRow.id)
        .with_for_update(of=JobRow)
    )


def _take_back(session: Session, held: Sequence[Row[UUID, int, str | None, bool]]) -> Moved:
    company = Counter(worker_id for _, _, worker_id, is_alive in held if not is_alive)
    moved: Moved = []
    for job_id, attempt, worker_id, is_alive in held:
        run = Attempt(job_id, attempt)
        if is_alive:
            state = JobState.QUEUED if lifecycle.release(session, run) else None
        else:
            error = WorkerLost(f"Worker {worker_id} went silent while it ran attempt {attempt}.")
            state = lifecycle.lose(session, run, error, alone=company[worker_id] == 1)
        if state is not None:
            moved.append((job_id, state))
    return moved
