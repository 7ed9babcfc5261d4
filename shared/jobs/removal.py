"""Deletion of jobs and their objects: on request, by age, and the leftovers of failed attempts.

Objects go first, then rows: a courier that dies in between finds the rows again. A tombstone (`removed_jobs`) stays, so that the
id answers 410. A stale attempt may still write an object afterwards; `orphans` finds it in a listing of the bucket.
"""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session

from shared.errors import JobNotFinal
from shared.infra.storage import image_key, job_of, snapshot_key
from shared.infra.tables import ImageRow, JobRow, RemovedJobRow
from shared.jobs import batches, lifecycle
from shared.jobs.rescue import LATE_WRITE
from shared.vocabulary.states import JobState

BATCH = 100


def removable(session: Session, job_id: UUID, *, owner: str | None) -> JobRow:
    """Return a job that may be deleted. Raises `JobNotFound`, `Gone`, or `JobNotFinal` before it has ended."""
    row = lifecycle.get(session, job_id, owner=owner)
    if not JobState(row.state).is_final:
        raise JobNotFinal(f"Job {job_id} is {row.state}; cancel it first.")
    return row


def aged(session: Session, *, days: float) -> Sequence[JobRow]:
    """Return the jobs that ended more than `days` ago, the oldest first, at most `BATCH`."""
    past = JobRow.finished_at < func.now() - timedelta(days=days)
    return session.scalars(select(JobRow).where(past).order_by(JobRow.finished_at).limit(BATCH)).all()


def objects(row: JobRow) -> list[str]:
    """Return the key of every object that any attempt of a job can have stored."""
    return [*_pictures(row, range(1, row.attempt + 1)), *_snapshots(row)]


def remove(session: Session, rows: Sequence[JobRow]) -> None:
    """Delete final jobs and the rows of their images, and insert tombstones. Idempotent."""
    ids = [row.id for row in rows]
    gone = session.execute(
        delete(JobRow)
        .where(JobRow.id.in_(ids), JobRow.finished_at.is_not(None))
        .returning(JobRow.id, JobRow.owner, JobRow.batch_id)
        .execution_options(synchronize_session=False)
    ).all()
    if gone:
        session.execute(insert(RemovedJobRow), [{"id": row.id, "owner": row.owner} for row in gone])
    batches.forget_empty(session, {row.batch_id for row in gone if row.batch_id is not None})


def littered(session: Session) -> Sequence[JobRow]:
    """Return jobs that ended over `LATE_WRITE` ago and may have leftovers, the oldest first, at most `BATCH`."""
    came_to_nothing = (JobRow.attempt > 1) | (JobRow.state != JobState.SUCCEEDED)
    ended = JobRow.finished_at < func.now() - LATE_WRITE
    left = select(JobRow).where(ended, ~JobRow.is_swept, JobRow.attempt > 0, came_to_nothing)
    return session.scalars(left.order_by(JobRow.finished_at).limit(BATCH)).all()


def litter(row: JobRow) -> list[str]:
    """Return the keys of images that a final job's attempts may have stored and the job does not show."""
    seen = {image.key for image in row.images}
    return [key for key in _pictures(row, range(1, row.attempt + 1)) if key not in seen]


def mark_swept(session: Session, rows: Sequence[JobRow]) -> None:
    """Record that the leftovers of these jobs are deleted."""
    swept = update(JobRow).where(JobRow.id.in_([row.id for row in rows])).values(is_swept=True)
    session.execute(swept.execution_options(synchronize_session=False))


def orphans(session: Session, keys: Sequence[str]) -> list[str]:
    """Return those of the keys that belong to ended or removed jobs which do not show them.

    Keys of jobs unknown to this database are left out: it may be another farm's, or restored from an older backup.
    """
    owners = {key: job_id for key in keys if (job_id := job_of(key))}
    ids = set(owners.values())
    # The states before the images: a job that is over by then shows all that it will ever show.
    over = set(session.scalars(select(JobRow.id).where(JobRow.id.in_(ids), JobRow.finished_at.is_not(None))))
    over |= set(session.scalars(select(RemovedJobRow.id).where(RemovedJobRow.id.in_(ids))))
    shown = set(session.scalars(select(ImageRow.key).where(ImageRow.job_id.in_(over))))
    return [key for key, job_id in owners.items() if job_id in over and key not in shown]


def _pictures(row: JobRow, attempts: range) -> list[str]:
    return [image_key(row.id, attempt, index) for attempt in attempts for index in range(row.params["num_images"])]


def _snapshots(row: JobRow) -> list[str]:
    return [snapshot_key(row.id, attempt) for attempt in range(1, (row.snapshot_attempt or 0) + 1)]
