"""Batches: jobs that were submitted together, and the count of those that have not ended.

`shared.jobs.outbox` counts down in the transaction that ends a job. The update locks the batch, so when its last two jobs end
at once, exactly one of them sees zero.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID

from sqlalchemy import case, delete, exists, func, select, update
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

from shared.errors import BatchNotFound
from shared.infra.tables import BatchRow, JobRow
from shared.vocabulary.states import JobState


@dataclass(slots=True)
class Tally:
    """The sums over the jobs of a batch."""

    counts: dict[JobState, int] = field(default_factory=dict)
    steps_done: int = 0
    steps_total: int = 0


def add(
    session: Session,
    *,
    owner: str,
    total: int,
    name: str | None = None,
    axes: Sequence[Mapping[str, Any]] = (),
    endpoint_id: UUID | None = None,
) -> BatchRow:
    """Insert a batch whose `total` jobs the same transaction inserts."""
    about = {"name": name, "axes": list(axes), "endpoint_id": endpoint_id}
    row = BatchRow(id=uuid7(), owner=owner, total=total, unfinished=total, **about)
    session.add(row)
    session.flush()
    return row


def get(session: Session, batch_id: UUID, *, owner: str | None) -> BatchRow:
    """Return a batch or raise `BatchNotFound`, also for one of another owner."""
    row = session.get(BatchRow, batch_id, populate_existing=True)
    if row is None or owner not in {None, row.owner}:
        raise BatchNotFound(f"There is no batch {batch_id}.")
    return row


def listing(session: Session, *, owner: str | None, limit: int, after: UUID | None = None) -> Sequence[BatchRow]:
    """Return up to `limit` batches, newest first, that are older than the batch `after`."""
    query = select(BatchRow).order_by(BatchRow.id.desc()).limit(limit)
    if owner is not None:
        query = query.where(BatchRow.owner == owner)
    return session.scalars(query if after is None else query.where(BatchRow.id < after)).all()


def jobs(session: Session, batch_id: UUID, *, start: int = 0, limit: int | None = None) -> Sequence[JobRow]:
    """Return the jobs of a batch in their order, from the place `start` on."""
    query = select(JobRow).where(JobRow.batch_id == batch_id, JobRow.batch_index >= start)
    return session.scalars(query.order_by(JobRow.batch_index).limit(limit)).all()


def tallies(session: Session, batch_ids: Collection[UUID]) -> Mapping[UUID, Tally]:
    """Sum up the jobs of batches."""
    sums = (
        select(JobRow.batch_id, JobRow.state, func.count(), func.sum(JobRow.steps_done), func.sum(JobRow.steps_total))
        .where(JobRow.batch_id.in_(batch_ids))
        .group_by(JobRow.batch_id, JobRow.state)
    )
    tallies_by_id = {batch_id: Tally() for batch_id in batch_ids}
    for batch_id, state, count, done, steps in session.execute(sums):
        tally = tallies_by_id[cast(UUID, batch_id)]  # null for jobs of none, which were not asked for
        tally.counts[JobState(state)] = count
        tally.steps_done += done
        tally.steps_total += steps
    return tallies_by_id


def count_down(session: Session, ended: Mapping[UUID, int]) -> Iterable[BatchRow]:
    """Subtract jobs that have just ended, given as batch id and number. Returns the batches that are finished now."""
    finished = []
    # In one order, so that two transactions that end jobs of several batches wait for each other instead of for ever.
    for batch_id in sorted(ended):
        left = BatchRow.unfinished - ended[batch_id]
        counted = (
            update(BatchRow)
            .where(BatchRow.id == batch_id)
            .values(unfinished=left, finished_at=case((left == 0, func.now())))
            .returning(BatchRow)
            .execution_options(populate_existing=True)
        )
        finished += [row for row in session.scalars(counted) if row.unfinished == 0]
    return finished


def forget_empty(session: Session, batch_ids: Collection[UUID]) -> None:
    """Delete those of the batches that have no jobs left."""
    if batch_ids:
        is_empty = ~exists().where(JobRow.batch_id == BatchRow.id)
        session.execute(delete(BatchRow).where(BatchRow.id.in_(batch_ids), is_empty))
