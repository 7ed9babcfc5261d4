"""Jobs as they are: some by their ids, listed newest first, counted. Reads only; `shared.jobs.lifecycle` changes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Select, func, select, tuple_
from sqlalchemy.orm import Session

from shared.infra.db import JobRow
from shared.vocabulary.states import JobState


@dataclass(frozen=True, slots=True)
class ListPosition:
    """A job's place in the listing. By time, since clients may choose ids; the id tells jobs of one moment apart."""

    created_at: datetime
    id: UUID


def rows(session: Session, job_ids: Sequence[UUID]) -> Mapping[UUID, JobRow]:
    """Return those of the jobs that there are, whoever owns them."""
    return {row.id: row for row in session.scalars(select(JobRow).where(JobRow.id.in_(job_ids)))}


def versions(session: Session, job_ids: Sequence[UUID]) -> Mapping[UUID, int]:
    """Return the versions alone, which tell cheaply whether a row is worth reading again."""
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
    """Return up to `limit` jobs, newest first, that are older than what is at `after`."""
    query: Select[JobRow] = select(JobRow).order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(limit)
    if after is not None:
        query = query.where(tuple_(JobRow.created_at, JobRow.id) < (after.created_at, after.id))
    if prompt is not None:
        query = query.where(JobRow.params["prompt"].astext.icontains(prompt, autoescape=True))
    exactly = {JobRow.state: state, JobRow.checkpoint: checkpoint, JobRow.error_code: error_code, JobRow.owner: owner}
    query = query.where(*(column == value for column, value in exactly.items() if value is not None))
    return session.scalars(query).all()


def count_queued(session: Session, *, at_most: int, owner: str | None = None) -> int:
    """Count the queued jobs, of one owner or of all, but no further than `at_most`."""
    queued = select(JobRow.owner).where(JobRow.state == JobState.QUEUED)
    if owner is not None:
        queued = queued.where(JobRow.owner == owner)
    return session.scalar(select(func.count()).select_from(queued.limit(at_most).subquery())) or 0
