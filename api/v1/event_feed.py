"""Feed of job events in commit order, paged by cursor: for receivers that were down, or that cannot receive webhooks."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import Query
from pydantic import BaseModel, Field

from api.callers import Reader
from api.desk import DeskDep
from api.openapi import documented
from api.routing import Router
from api.v1 import cursors
from shared.infra.tables import EventRow
from shared.jobs import outbox
from shared.jobs.outbox import EventType
from shared.webhooks.deliveries import message_id

LATEST = "latest"

router = Router(prefix="/v1/events", tags=["webhooks"], responses=documented(401, 403, 422, 429, 503))


class Happening(BaseModel):
    """A change of a job's state, or the end of a batch. `id` is the `webhook-id` of the webhooks that report it."""

    id: str
    type: EventType
    at: datetime
    job_id: UUID | None
    batch_id: UUID | None = None
    version: Annotated[int, Field(description="The job's or batch's version after the change.")]

    @classmethod
    def of(cls, row: EventRow) -> "Happening":
        """Show a row."""
        kind = EventType(row.type)
        return cls(
            id=message_id(row.job_id, row.version),
            type=kind,
            at=row.at,
            job_id=None if kind.is_of_batch else row.job_id,
            batch_id=row.job_id if kind.is_of_batch else None,
            version=row.version,
        )


class Feed(BaseModel):
    """The next events, oldest first. Continue with `after=next_cursor`, at once while `has_more`."""

    events: list[Happening]
    next_cursor: str
    has_more: bool


@router.get("", summary="List events")
def listing(
    desk: DeskDep,
    caller: Reader,
    after: Annotated[
        str | None,
        Query(max_length=64, description="`next_cursor` of the previous answer; `latest` skips all past events."),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Feed:
    """List the events after a cursor; without one, from the oldest event that is kept. No event is skipped."""
    position = None if after in {None, LATEST} else cursors.decode_position(after or "")
    with desk.db.transaction() as session:
        if after == LATEST:
            return Feed(events=[], next_cursor=cursors.encode_position(outbox.latest(session)), has_more=False)
        rows = outbox.feed(session, after=position, limit=limit + 1, owner=caller.sees_only)
    page = rows[:limit]
    end = outbox.Position(page[-1].txid, page[-1].id) if page else position or outbox.Position(0, 0)
    return Feed(
        events=[Happening.of(row) for row in page],
        next_cursor=cursors.encode_position(end),
        has_more=len(rows) > limit,
    )
