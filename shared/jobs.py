"""The acts that change a job. Nothing else writes the `jobs` and `images` tables.

Every act is one guarded statement: it names the states it may leave and, for a worker's act, the attempt it belongs to. A zombie
whose lease was taken matches no row and learns so from the result. An act that starts or ends jobs calls `outbox.record` with
their ids. Callers commit, then ring doorbells and publish events.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CursorResult,
    Executable,
    Integer,
    Select,
    Update,
    Uuid,
    case,
    column,
    func,
    not_,
    select,
    update,
    values,
)
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

from shared import outbox, shares
from shared.db import ImageRow, JobRow
from shared.errors import FarmError, JobAlreadyFinal, JobNotFound, WorkerLost
from shared.params import GenerationParams
from shared.states import JobState, sources


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a job by one worker. Its number fences every write: a later attempt makes it void."""

    job_id: UUID
    attempt: int


@dataclass(frozen=True, slots=True)
class Claim(Attempt):
    """A worker's right to run an attempt, and what to render."""

    params: GenerationParams
    # Its key has a running limit: when it ends, another of the key's jobs may have become claimable.
    is_limited: bool = False


@dataclass(frozen=True, slots=True)
class Beat(Attempt):
    """What a worker reports of a running attempt: denoising steps done over all its images."""

    steps_done: int


@dataclass(frozen=True, slots=True)
class FinishedImage:
    """An image that is already in the storage under `key`."""

    index: int
    seed: int
    key: str
    content_type: str
    width: int
    height: int
    size_bytes: int
    sha256: str
    flagged: bool = False


def submit(
    session: Session,
    params: GenerationParams,
    *,
    max_attempts: int,
    owner: str = "anonymous",
    priority: int = 0,
    endpoint_id: UUID | None = None,
) -> JobRow:
    """Insert a queued job. Its id is time-ordered (UUID version 7), so ids sort by age. `endpoint_id` hears of it too."""
    turn = shares.take(session, owner=owner, checkpoint=params.checkpoint, priority=priority, cost=params.cost)
    row = JobRow(
        id=uuid7(),
        owner=owner,
        checkpoint=params.checkpoint,
        priority=priority,
        virtual_start=turn.start,
        virtual_finish=turn.finish,
        parked=turn.is_parked,
        params=params.model_dump(mode="json"),
        max_attempts=max_attempts,
        steps_total=params.unet_calls,
        cost=params.cost,
        endpoint_id=endpoint_id,
        images=[],
    )
    session.add(row)
    session.flush()
    session.refresh(row)
    return row


def get(session: Session, job_id: UUID, *, owner: str | None = None) -> JobRow:
    """Return the job or raise `JobNotFound`, also for a job of another owner than the one given."""
    row = session.get(JobRow, job_id, populate_existing=True)
    if row is None or owner not in {None, row.owner}:
        raise JobNotFound(f"No job has ever had the id {job_id}.")
    return row


def listing(
    session: Session,
    *,
    limit: int,
    after: UUID | None = None,
    state: JobState | None = None,
    checkpoint: str | None = None,
    owner: str | None = None,
) -> Sequence[JobRow]:
    """Return up to `limit` jobs, newest first, that are older than the job `after`."""
    query: Select[JobRow] = select(JobRow).order_by(JobRow.id.desc()).limit(limit)
    if after is not None:
        query = query.where(JobRow.id < after)
    if state is not None:
        query = query.where(JobRow.state == state)
    if checkpoint is not None:
        query = query.where(JobRow.checkpoint == checkpoint)
    if owner is not None:
        query = query.where(JobRow.owner == owner)
    return session.scalars(query).all()


def claim_next(
    session: Session, checkpoint: str, worker_id: str, *, lease_s: float, oldest_level: bool = False
) -> Claim | None:
    """Take the best queued job of a checkpoint: highest priority, then fair share, then age. None when there is none to take.

    With `oldest_level` the priority of the job that waits longest goes first: workers ask for it now and then, so that the
    lowest priority moves too. Concurrent claims never block each other and never take the same job.
    """
    taken = session.execute(claim_statement(checkpoint, worker_id, lease_s, oldest_level=oldest_level)).one_or_none()
    if taken is None:
        return None
    outbox.record(session, taken.id)
    return Claim(taken.id, taken.attempt, GenerationParams.model_validate(taken.params), taken.is_limited)


def claim_statement(checkpoint: str, worker_id: str, lease_s: float, *, oldest_level: bool = False) -> Executable:
    """Return the one statement of a claim: it takes the job, moves its owner's parked ones up and the clock on."""
    best = _best(checkpoint)
    if oldest_level:
        best = func.coalesce(_best(checkpoint, at=_oldest_level(checkpoint)), best)
    taken = (
        update(JobRow)
        .where(JobRow.id == best)
        .values(
            state=JobState.RUNNING,
            version=JobRow.version + 1,
            attempt=JobRow.attempt + 1,
            worker_id=worker_id,
            lease_until=_lease_end(lease_s),
            started_at=func.now(),
            steps_done=0,
        )
        .returning(
            *(JobRow.id, JobRow.attempt, JobRow.params),
            *(JobRow.owner, JobRow.checkpoint, JobRow.priority, JobRow.virtual_start),
        )
        .cte("taken")
    )
    also = shares.advance(taken).cte("clock"), shares.move_up(taken).cte("moved")
    is_limited = shares.is_limited(taken.c.owner).label("is_limited")
    return select(taken.c.id, taken.c.attempt, taken.c.params, is_limited).add_cte(*also)


def heartbeat(session: Session, beats: Sequence[Beat], *, lease_s: float) -> frozenset[UUID]:
    """Extend the leases of a worker's running jobs and record their progress, in one statement.

    Returns the ids still held under the reported attempt. A job that is missing was canceled, rescued or finished elsewhere:
    its worker must stop.
    """
    if not beats:
        return frozenset()
    reported = values(
        column("id", Uuid), column("attempt", Integer), column("steps_done", Integer), name="reported"
    ).data([(beat.job_id, beat.attempt, beat.steps_done) for beat in beats])
    moved = case((JobRow.steps_done != reported.c.steps_done, 1), else_=0)
    held = session.execute(
        update(JobRow)
        .where(
            JobRow.id == reported.c.id,
            JobRow.attempt == reported.c.attempt,
            JobRow.state == JobState.RUNNING,
        )
        .values(lease_until=_lease_end(lease_s), steps_done=reported.c.steps_done, version=JobRow.version + moved)
        .returning(JobRow.id)
        .execution_options(synchronize_session=False)
    )
    return frozenset(held.scalars())


def succeed(session: Session, run: Attempt, images: Iterable[FinishedImage]) -> bool:
    """Publish the images and end the job, all or nothing. False when the attempt no longer holds the job."""
    done = _finish(session, run, JobState.SUCCEEDED, steps_done=JobRow.steps_total, **_NO_BLAME)
    if done:
        session.add_all(
            ImageRow(
                job_id=run.job_id,
                index=image.index,
                seed=image.seed,
                key=image.key,
                content_type=image.content_type,
                width=image.width,
                height=image.height,
                size_bytes=image.size_bytes,
                sha256=image.sha256,
                flagged=image.flagged,
            )
            for image in images
        )
        outbox.record(session, run.job_id)
    return done


def fail(session: Session, run: Attempt, error: FarmError) -> JobState | None:
    """End an attempt that raised: back to the queue while the error is retryable and attempts are left, else failed.

    Returns the new state, or None when the attempt no longer holds the job.
    """
    row = session.get(JobRow, run.job_id, with_for_update=True, populate_existing=True)
    if row is None or row.attempt != run.attempt or row.state != JobState.RUNNING:
        return None
    retry = error.retryable and row.faults + 1 < row.max_attempts
    if retry:
        _requeue(session, run, faults=JobRow.faults + 1, **_blame(error))
        return JobState.QUEUED
    _finish(session, run, JobState.FAILED, faults=JobRow.faults + 1, **_blame(error))
    outbox.record(session, run.job_id)
    return JobState.FAILED


def release(session: Session, run: Attempt) -> bool:
    """Hand a running job back to the queue through no fault of its own, as a draining worker does."""
    return _requeue(session, run)


def cancel(session: Session, job_id: UUID, *, owner: str | None = None) -> JobRow:
    """End a queued or running job. Once this commits, no success can follow; its worker stops at the next step.

    Raises `JobNotFound`, or `JobAlreadyFinal` when the job had ended before.
    """
    statement = (
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.state.in_(sources(JobState.CANCELED)))
        .values(state=JobState.CANCELED, version=JobRow.version + 1, lease_until=None, finished_at=func.now())
    )
    if owner is not None:
        statement = statement.where(JobRow.owner == owner)
    canceled = _matched(session, statement)
    if canceled:
        outbox.record(session, job_id)
    row = get(session, job_id, owner=owner)
    if not canceled:
        raise JobAlreadyFinal(f"Job {job_id} has already {row.state}.")
    shares.give_back(session, [job_id])
    return row


def rescue(session: Session, *, limit: int = 100) -> list[tuple[UUID, JobState]]:
    """Take back jobs whose lease ran out: queued again, or failed when their attempts are used up.

    Safe to run from several places at once: each expired job is rescued by one of them.
    """
    lost = session.execute(
        select(JobRow.id, JobRow.attempt, JobRow.worker_id)
        .where(JobRow.state == JobState.RUNNING, JobRow.lease_until < func.now())
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    rescued = []
    for job_id, attempt, worker_id in lost:
        error = WorkerLost(f"Worker {worker_id} went silent while it ran attempt {attempt}.")
        state = fail(session, Attempt(job_id, attempt), error)
        if state is not None:
            rescued.append((job_id, state))
    return rescued


def count_queued(session: Session, *, at_most: int, owner: str | None = None) -> int:
    """Count the queued jobs, of one owner or of all, but no further than `at_most`."""
    queued = select(JobRow.owner).where(JobRow.state == JobState.QUEUED)
    if owner is not None:
        queued = queued.where(JobRow.owner == owner)
    return session.scalar(select(func.count()).select_from(queued.limit(at_most).subquery())) or 0


def backlog(session: Session) -> Mapping[str, int]:
    """Count the queued jobs of each checkpoint that could be claimed now, where there are any."""
    claimable = select(JobRow.checkpoint, func.count()).where(
        JobRow.state == JobState.QUEUED, not_(JobRow.parked), JobRow.owner.not_in(shares.blocked_owners())
    )
    counted = session.execute(claimable.group_by(JobRow.checkpoint))
    return dict(counted.all())


def _best(checkpoint: str, *, at: Any = None) -> Any:
    """Choose the job to claim, at one priority if it is given. Must agree with `shared.queue.ahead`."""
    able = select(JobRow.id).where(
        JobRow.state == JobState.QUEUED, not_(JobRow.parked), JobRow.checkpoint == checkpoint, shares.may_run()
    )
    if at is not None:
        able = able.where(JobRow.priority == at)
    order = (JobRow.priority.desc(), JobRow.virtual_start, JobRow.id)
    return able.order_by(*order).limit(1).with_for_update(skip_locked=True, of=JobRow).scalar_subquery()


def _oldest_level(checkpoint: str) -> Any:
    queued = select(JobRow.priority).where(JobRow.state == JobState.QUEUED, JobRow.checkpoint == checkpoint)
    return queued.order_by(JobRow.id).limit(1).scalar_subquery()


def _finish(session: Session, run: Attempt, to: JobState, **columns: Any) -> bool:
    return _move(session, run, to, lease_until=None, finished_at=func.now(), **columns)


def _requeue(session: Session, run: Attempt, **columns: Any) -> bool:
    return _move(
        session, run, JobState.QUEUED, lease_until=None, worker_id=None, started_at=None, steps_done=0, **columns
    )


def _move(session: Session, run: Attempt, to: JobState, **columns: Any) -> bool:
    statement = (
        update(JobRow)
        .where(JobRow.id == run.job_id, JobRow.attempt == run.attempt, JobRow.state == JobState.RUNNING)
        .values(state=to, version=JobRow.version + 1, **columns)
    )
    return _matched(session, statement)


def _matched(session: Session, statement: Update) -> bool:
    result = session.execute(statement.execution_options(synchronize_session=False))
    assert isinstance(result, CursorResult)  # noqa: S101 - narrows the type; an UPDATE always returns a cursor
    return result.rowcount == 1


_NO_BLAME: Mapping[str, None] = {"error_code": None, "error_message": None, "error_retryable": None}


def _blame(error: FarmError) -> dict[str, Any]:
    return {"error_code": error.code, "error_message": str(error), "error_retryable": error.retryable}


def _lease_end(lease_s: float) -> Any:
    return func.now() + timedelta(seconds=lease_s)
