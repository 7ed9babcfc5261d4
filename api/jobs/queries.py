"""Read-only queries over jobs: by id, newest first, and counts. `shared.jobs.lifecycle` changes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Select, func, select, tuple_
from sqlalchemy.orm import Session

from shared.infra.tables import JobRow
from shared.vocabulary.states import JobState


@dataclass(frozen=True, slots=True)
class ListPosition:
    """Position of a job in the listing: by creation time, because clients may choose ids; the id breaks ties."""

    created_at: datetime
    id: UUID


def rows(session: Session, job_ids: Sequence[UUID]) -> Mapping[UUID, JobRow]:
    """Return the jobs that exist, by id, of any owner."""
    return {row.id: row for row in session.scalars(select(JobRow).where(JobRow.id.in_(job_ids)))}


def versions(session: Session, job_ids: Sequence[UUID]) -> Mapping[UUID, int]:
    """Return the versions of jobs by id: a cheap test whether a row has changed."""
    return dict(session.execute(select(JobRow.id, JobRow.version).where(JobRow.id.in_(job_ids))).all())


def listing(
    session: Session,
    *,
    limit: int,
    after: ListPosition | None = None,
    state: JobState | None = None,
    checkpoint: str | None = None,
    prompt: str | None = None,
    error_code: str | None = None,
    owner: str | None = None,
) -> Sequence[JobRow]:
    """Return up to `limit` jobs after the position `after`, newest first."""
    query: Select[JobRow] = select(JobRow).order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(limit)
    if after is not None:
        query = query.where(tuple_(JobRow.created_at, JobRow.id) < (after.created_at, after.id))
    if prompt is not None:
        query = query.where(JobRow.params["prompt"].astext.icontains(prompt, autoescape=True))
    exactly = {JobRow.state: state, JobRow.checkpoint: checkpoint, JobRow.error_code: error_code, JobRow.owner: owner}
    query = query.where(*(column == value for column, value in exactly.items() if value is not None))
    return session.scalars(query).all()


def count_queued(session: Session, *, at_most: int, owner: str | None = None) -> int:
    """Count the queued jobs of one owner or of all, up to `at_most`."""
    queued = select(JobRow.owner).where(JobRow.state == JobState.QUEUED)
    if owner is not None:
        queued = queued.where(JobRow.owner == owner)
    return session.scalar(select(func.count()).select_from(queued.limit(at_most).subquery())) or 0
