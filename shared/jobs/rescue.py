"""What befalls jobs without anyone asking: their worker is lost, their time is up. Run by any courier, as often as it likes.

Safe from several places at once: every row is locked while it is judged. What a worker held is moved by the acts of
`shared.jobs.lifecycle`, guarded by its attempt.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Row, Select, case, exists, func, literal, not_, select, text, update
from sqlalchemy.orm import Session

from shared.errors import RunTimeout, WorkerLost
from shared.infra.db import JobRow, WorkerRow
from shared.jobs import claims, fair_queue, lifecycle, outbox
from shared.jobs.lifecycle import Attempt
from shared.vocabulary.states import JobState

# Longer than one write to the storage may take.
LATE_WRITE = timedelta(seconds=60)
Moved = list[tuple[UUID, JobState]]


def rescue_lost(session: Session, *, lease_s: float, limit: int = 500) -> Moved:
    """Take back the jobs of workers that went silent: queued again, or failed when their attempts are used up.

    A lost worker's leases end at different moments, up to a heartbeat apart. All its jobs are taken at the first, for only
    together do they tell who was alone. An attempt that a living worker let run out is one it never knew of: nobody's fault.
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
    """Take back at once what a worker's own former process still held when it died."""
    held = _held(literal(False)).where(JobRow.worker_id == worker_id)
    return _take_back(session, session.execute(held).all())


def end_overdue(session: Session, *, limit: int = 500) -> Moved:
    """Fail attempts that run for longer than their job allows. Their workers notice with the next heartbeat."""
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
    """End queued jobs that nobody has claimed in time. Returns which."""
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
    """Return jobs that ended a while ago and the last attempt that kept a snapshot. An earlier write may still be under way."""
    ended = JobRow.finished_at < func.now() - LATE_WRITE
    kept = select(JobRow.id, JobRow.snapshot_attempt).where(JobRow.snapshot_attempt.is_not(None), ended)
    return [(job_id, attempt) for job_id, attempt in session.execute(kept.limit(limit)) if attempt]


def forget_snapshots(session: Session, job_ids: Sequence[UUID]) -> None:
    """Say that nothing is kept of these jobs any more."""
    session.execute(
        update(JobRow)
        .where(JobRow.id.in_(job_ids))
        .values(snapshot_attempt=None)
        .execution_options(synchronize_session=False)
    )


def backlog(session: Session) -> Mapping[str, int]:
    """Count the queued jobs of each checkpoint that could be claimed now, where there are any."""
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
