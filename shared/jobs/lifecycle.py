"""The life cycle of a job: submit, claim, heartbeat, succeed, fail, release, cancel.

Each function is one guarded statement: it names the states it may leave and, for a worker's calls, the attempt (a fencing token).
A zombie, whose lease was taken, matches no row and learns so from the result. Functions that start or end jobs write their events
(`outbox.record`). Callers commit, then ring doorbells and publish events.

`claims`, `fair_queue`, `rescue` and `removal` write the jobs table too; see `shared.jobs`.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

import structlog
from pydantic import ValidationError
from sqlalchemy import (
    ColumnElement,
    CursorResult,
    Integer,
    Update,
    Uuid,
    case,
    column,
    func,
    select,
    update,
    values,
)
from sqlalchemy.orm import Session

from shared.errors import FarmError, Gone, JobAlreadyFinal, JobNotFound
from shared.infra.db import Database
from shared.infra.tables import ImageRow, JobRow, RemovedJobRow
from shared.jobs import chosen_ids, claims, fair_queue, outbox, submits
from shared.jobs.submits import NewJob
from shared.vocabulary.params import GenerationParams
from shared.vocabulary.states import JobState, sources

MAX_RETRY_S = 300.0
# How long a job of a later release is left to workers of that release before this one looks at it again.
UNREADABLE_S = 10.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a job by one worker. Its number fences every write: a later attempt makes it void."""

    job_id: UUID
    attempt: int


@dataclass(frozen=True, slots=True)
class Claim(Attempt):
    """A claimed job: the attempt that the worker may run, and its parameters."""

    params: GenerationParams
    # Its key has a running limit: when it ends, another of the key's jobs may have become claimable.
    is_limited: bool = False
    # Workers that were lost while they ran it; they say how much company it may have (`worker.slots.claim_gate`).
    losses: int = 0
    # The attempt that kept the latest snapshot, if any did.
    snapshot_attempt: int | None = None


@dataclass(frozen=True, slots=True)
class Beat(Attempt):
    """A heartbeat of a running attempt: denoising steps done over all its images."""

    steps_done: int


@dataclass(frozen=True, slots=True)
class FinishedImage:
    """An image that is already stored under `key`."""

    index: int
    seed: int
    key: str
    content_type: str
    width: int
    height: int
    size_bytes: int
    sha256: str
    flagged: bool = False


def submit(session: Session, params: GenerationParams, **fields: Any) -> JobRow:
    """Insert one queued job; `fields` are the other fields of `NewJob`."""
    return submit_all(session, [NewJob(params=params, **fields)])[0]


def submit_all(session: Session, orders: Sequence[NewJob]) -> Sequence[JobRow]:
    """Insert queued jobs with their turns in the fair queue, in one statement, and return them in their order.

    Until the transaction ends other submits of these owners wait: little but the commit belongs behind it. Ids are time-ordered
    (UUID version 7) where the client chose none.
    """
    return _submitted(orders, lambda jobs: [row._asdict() for row in session.execute(submits.SUBMIT, jobs)])


def submit_at_once(db: Database, orders: Sequence[NewJob]) -> Sequence[JobRow]:
    """Do as `submit_all`, in a transaction of its own that costs one round trip. Raises `DatabaseUnavailable`."""
    return _submitted(orders, lambda jobs: db.at_once(submits.SUBMIT_AT_ONCE, jobs))


def _submitted(
    orders: Sequence[NewJob], insert: Callable[[Mapping[str, str]], Sequence[Mapping[str, Any]]]
) -> Sequence[JobRow]:
    if not orders:
        return []
    fields = [submits.fields(order) for order in orders]
    new = [
        {**one, "place": place, "expires_in_s": order.expires_in_s}
        for place, (one, order) in enumerate(zip(fields, orders, strict=True))
    ]
    told = {row["id"]: row for row in insert({"jobs": json.dumps(new, default=str)})}
    return [submits.row(one, told[one["id"]]) for one in fields]


def get(session: Session, job_id: UUID, *, owner: str | None = None) -> JobRow:
    """Return the job that an owner calls `job_id`; without an owner, the one that has this id.

    Raises `JobNotFound`, also for a job of another owner, or `Gone` for a removed one.
    """
    ids = [job_id] if owner is None else [job_id, chosen_ids.derived(owner, job_id)]
    for one in ids:
        row = session.get(JobRow, one, populate_existing=True)
        if row is not None and owner in {None, row.owner}:
            return row
    for one in ids:
        _refuse_removed(session, one, owner, shown=job_id)
    raise JobNotFound(f"There is no job {job_id}.")


def _refuse_removed(session: Session, job_id: UUID, owner: str | None, *, shown: UUID) -> None:
    removed = session.get(RemovedJobRow, job_id)
    if removed is not None and owner in {None, removed.owner}:
        raise Gone(f"Job {shown} was deleted with its images at {removed.removed_at:%Y-%m-%d %H:%M} UTC.")


def claim_next(
    session: Session, checkpoint: str, worker_id: str, *, lease_s: float, oldest_level: bool = False
) -> Claim | None:
    """Claim the first queued job of a checkpoint: by priority, then fair share, then id. None when no job may run.

    `oldest_level` prefers the priority of the job that waits longest: workers set it now and then, so that the lowest priority
    moves too. A job with parameters unknown here is put back for later. `shared.jobs.claims` has the statement; concurrent
    claims never wait for each other nor take the same job.
    """
    statement = claims.OLDEST_LEVEL if oldest_level else claims.FIRST
    about = {"checkpoint": checkpoint, "worker_id": worker_id, "lease_s": lease_s}
    taken = session.execute(statement, about).one_or_none()
    if taken is None:
        return None
    try:
        params = GenerationParams.model_validate(taken.params)
    except ValidationError as error:
        # A job of a later release, in the middle of a rolling upgrade: a worker of that release takes it.
        log.warning("job.unreadable", job_id=str(taken.id), error=str(error))
        _requeue(session, Attempt(taken.id, taken.attempt), not_before=_from_now(UNREADABLE_S))
        return None
    outbox.record(session, taken.id)
    return Claim(taken.id, taken.attempt, params, taken.is_limited, taken.losses, taken.snapshot_attempt)


def checkpoints(session: Session, job_ids: Sequence[UUID]) -> Sequence[str]:
    """Return the checkpoint of each of these jobs, in any order."""
    return session.scalars(select(JobRow.checkpoint).where(JobRow.id.in_(job_ids))).all()


def heartbeat(session: Session, beats: Sequence[Beat], *, lease_s: float) -> Mapping[UUID, int]:
    """Extend the leases of a worker's running jobs and record their progress, in one statement.

    Returns the versions of the jobs that it still holds under the reported attempt. A missing one was canceled, rescued or
    finished elsewhere: its worker must stop.
    """
    if not beats:
        return {}
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
        .values(lease_until=_from_now(lease_s), steps_done=reported.c.steps_done, version=JobRow.version + moved)
        .returning(JobRow.id, JobRow.version)
        .execution_options(synchronize_session=False)
    )
    return dict(held.all())


def note_snapshot(session: Session, run: Attempt) -> bool:
    """Record, before it is written, that the attempt keeps a snapshot. False when it no longer holds the job."""
    held = update(JobRow).where(*_is(run), JobRow.state == JobState.RUNNING)
    return _matched(session, held.values(snapshot_attempt=run.attempt))


def resume(session: Session, run: Attempt, steps_done: int) -> bool:
    """Record the step at which the attempt resumes from a snapshot. False when it no longer holds the job."""
    return _move(session, run, JobState.RUNNING, resumed_from_step=steps_done, steps_done=steps_done)


def succeed(session: Session, run: Attempt, images: Iterable[FinishedImage]) -> bool:
    """Insert the images and end the job, all or nothing. False when the attempt no longer holds the job.

    Idempotent: after a commit whose answer was lost, a repeat returns True.
    """
    done = _finish(session, run, JobState.SUCCEEDED, steps_done=JobRow.steps_total, **_NO_BLAME)
    if done:
        session.add_all(ImageRow(job_id=run.job_id, **asdict(image)) for image in images)
        outbox.record(session, run.job_id)
        return True
    won = select(JobRow.id).where(*_is(run), JobRow.state == JobState.SUCCEEDED)
    return session.execute(won).first() is not None


def fail(session: Session, run: Attempt, error: FarmError, *, retry_s: float = 0.0) -> JobState | None:
    """End an attempt that raised: requeue the job if the error is retryable and attempts are left, else fail it.

    The next attempt waits for about `retry_s` seconds, doubled after each fault, with jitter. Returns the new state; None when
    the attempt no longer holds the job.
    """
    faults = _faults(session, run)
    if faults is None:
        return None
    wait_s = min(retry_s * 2**faults, MAX_RETRY_S)
    # Spread out, so that jobs that failed together do not come back together.
    not_before = _from_now(wait_s * (func.random() / 2 + 0.5)) if wait_s else None
    return _fault(session, run, error, not_before=not_before)


def lose(session: Session, run: Attempt, error: FarmError, *, alone: bool) -> JobState | None:
    """End an attempt whose worker is lost, as `fail` does, and count the loss.

    It is a fault only if the job was alone on that worker: machines get lost, and their jobs cannot help it. A second loss makes
    the job a suspect, and each further one halves the company in which it runs. So a job that kills its workers is alone after
    a few, then fails after `max_attempts`, and costs the others no fault.
    """
    if _faults(session, run) is None:
        return None
    counted = {"losses": JobRow.losses + 1, "suspect": JobRow.losses > 0}
    if alone:
        return _fault(session, run, error, **counted)
    _requeue(session, run, **counted, **_blame(error))
    return JobState.QUEUED


def release(session: Session, run: Attempt) -> bool:
    """Requeue a running job without a fault, as a draining worker does. False when the attempt no longer holds it."""
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
    if not canceled and row.id != job_id:
        return cancel(session, row.id, owner=owner)
    if not canceled:
        raise JobAlreadyFinal(f"Job {row.shown_id} has already {row.state}.")
    fair_queue.give_back(session, [job_id])
    return row


def cancel_batch(session: Session, batch_id: UUID) -> Mapping[UUID, int]:
    """Cancel the unfinished jobs of a batch. Returns the versions of the canceled ones by id."""
    is_open = JobRow.state.in_(sources(JobState.CANCELED))
    # Locked in one order, so that two who cancel wait for each other instead of for ever.
    chosen = select(JobRow.id).where(JobRow.batch_id == batch_id, is_open).order_by(JobRow.id).with_for_update()
    ended = session.execute(
        update(JobRow)
        .where(JobRow.id.in_(chosen.scalar_subquery()), is_open)
        .values(state=JobState.CANCELED, version=JobRow.version + 1, lease_until=None, finished_at=func.now())
        .returning(JobRow.id, JobRow.version)
        .execution_options(synchronize_session=False)
    )
    canceled = dict(ended.all())
    outbox.record(session, *canceled)
    fair_queue.give_back(session, list(canceled))
    return canceled


def _faults(session: Session, run: Attempt) -> int | None:
    """Lock the row and return its faults; None when the attempt does not hold the job."""
    held = select(JobRow.faults).where(*_is(run), JobRow.state == JobState.RUNNING).with_for_update()
    return session.execute(held).scalar_one_or_none()


def _fault(session: Session, run: Attempt, error: FarmError, **columns: Any) -> JobState:
    columns |= {"faults": JobRow.faults + 1, **_blame(error)}
    if error.retryable and _requeue(session, run, JobRow.faults + 1 < JobRow.max_attempts, **columns):
        return JobState.QUEUED
    _finish(session, run, JobState.FAILED, **{**columns, "not_before": None})
    outbox.record(session, run.job_id)
    return JobState.FAILED


def _finish(session: Session, run: Attempt, to: JobState, **columns: Any) -> bool:
    return _move(session, run, to, lease_until=None, finished_at=func.now(), **columns)


def _requeue(session: Session, run: Attempt, *conditions: ColumnElement[bool], **columns: Any) -> bool:
    gone = {"lease_until": None, "worker_id": None, "started_at": None, "steps_done": 0}
    return _move(session, run, JobState.QUEUED, *conditions, **gone, **columns)


def _move(session: Session, run: Attempt, to: JobState, *conditions: ColumnElement[bool], **columns: Any) -> bool:
    statement = (
        update(JobRow)
        .where(*_is(run), JobRow.state == JobState.RUNNING, *conditions)
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


def _is(run: Attempt) -> tuple[ColumnElement[bool], ...]:
    return JobRow.id == run.job_id, JobRow.attempt == run.attempt


def _from_now(seconds: Any) -> Any:
    return func.now() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)
