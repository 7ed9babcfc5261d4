"""Retry failed, expired and canceled jobs, as new jobs with `retry_of`: final states never change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import exists, select
from sqlalchemy.orm import Session, aliased

from shared.errors import NothingToRetry
from shared.infra.tables import JobRow
from shared.jobs import lifecycle
from shared.jobs.submits import NewJob
from shared.vocabulary.params import GenerationParams
from shared.vocabulary.states import JobState

RETRIED_AT_ONCE = 500
# Canceled jobs are retried by id alone: someone did not want them.
DEAD = (JobState.FAILED, JobState.EXPIRED)


@dataclass(frozen=True, slots=True)
class Dead:
    """Filter over dead jobs; None matches all."""

    owner: str | None = None
    error_code: str | None = None
    checkpoint: str | None = None
    since: datetime | None = None
    limit: int = RETRIED_AT_ONCE


def lock(session: Session, job_id: UUID, *, owner: str | None, is_lost: bool = False) -> JobRow:
    """Lock a job for a retry and return it, so that two concurrent retries make one new job.

    `is_lost` says that the storage has lost images of it. Raises `JobNotFound`, `Gone`, and `NothingToRetry` for one that has
    not ended yet, or has succeeded and neither is lost nor was at an earlier retry.
    """
    found = lifecycle.get(session, job_id, owner=owner)
    row = session.get_one(JobRow, found.id, with_for_update=True, populate_existing=True)
    may_be_retried = {*DEAD, JobState.CANCELED}
    if row.state == JobState.SUCCEEDED and (is_lost or of(session, row.id) is not None):
        may_be_retried.add(JobState.SUCCEEDED)
    if row.state not in may_be_retried:
        raise NothingToRetry(
            f"Job {job_id} is {row.state}; only failed, expired or canceled jobs can be retried, "
            "and those whose images the storage has lost."
        )
    return row


def dead(session: Session, which: Dead) -> Sequence[JobRow]:
    """Lock and return dead jobs without a retry, the oldest first. Jobs that another transaction has locked are skipped."""
    later = aliased(JobRow)
    query = select(JobRow).where(JobRow.state.in_(DEAD), ~exists().where(later.retry_of == JobRow.id))
    for column, value in (
        (JobRow.owner, which.owner),
        (JobRow.error_code, which.error_code),
        (JobRow.checkpoint, which.checkpoint),
    ):
        if value is not None:
            query = query.where(column == value)
    if which.since is not None:
        query = query.where(JobRow.finished_at >= which.since)
    locked = (
        query.order_by(JobRow.created_at, JobRow.id).limit(which.limit).with_for_update(skip_locked=True, of=JobRow)
    )
    return session.scalars(locked).all()


def of(session: Session, job_id: UUID) -> JobRow | None:
    """Return the latest retry of a job, None without one."""
    return session.scalars(select(JobRow).where(JobRow.retry_of == job_id).order_by(JobRow.id.desc()).limit(1)).first()


def made_of(session: Session, job_ids: Sequence[UUID]) -> Mapping[UUID, UUID]:
    """Return the ids of the retries, by the ids of the retried jobs."""
    pairs = select(JobRow.retry_of, JobRow.id).where(JobRow.retry_of.in_(job_ids))
    return {old: new for old, new in session.execute(pairs) if old is not None}


def retry(session: Session, rows: Sequence[JobRow], *, max_attempts: int) -> Sequence[JobRow]:
    """Queue dead jobs again. A new job does not expire: the first one may have, and it is wanted all the same."""
    again = [
        NewJob(
            params=GenerationParams.model_validate(row.params),
            max_attempts=max_attempts,
            owner=row.owner,
            priority=row.priority,
            endpoint_id=row.endpoint_id,
            timeout_s=row.timeout_s,
            retry_of=row.id,
        )
        for row in rows
    ]
    return lifecycle.submit_all(session, again)
