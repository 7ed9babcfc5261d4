"""Webhook deliveries: list them with every attempt, and replay one or a range."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, Path, Query
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from api.callers import Reader, Submitter
from api.desk import DeskDep
from api.openapi import documented
from api.routing import Router
from api.v1 import cursors
from shared.errors import DeliveryNotFound
from shared.infra.tables import DeliveryRow
from shared.jobs.outbox import EventType
from shared.webhooks import deliveries
from shared.webhooks.deliveries import DeliveryState, Filter

router = Router(prefix="/v1/webhooks/deliveries", tags=["webhooks"], responses=documented(401, 403, 422, 429, 503))


class DeliveryAttempt(BaseModel):
    """One attempt. `status` is the HTTP status of the answer, null without an answer."""

    attempt: Annotated[int, Field(description="From 1.")]
    at: datetime
    duration_s: Annotated[float, Field(description="Seconds until the answer or the error.")]
    status: int | None
    error: str | None


class Delivery(BaseModel):
    """One event for one endpoint. `webhook_id` is the same in every attempt and in /v1/events."""

    id: UUID
    webhook_id: str
    type: EventType
    job_id: UUID | None
    batch_id: UUID | None = None
    endpoint_id: UUID
    url: str
    state: DeliveryState
    next_attempt_at: Annotated[datetime | None, Field(description="Null unless the delivery is pending.")]
    created_at: datetime
    finished_at: datetime | None
    attempts: list[DeliveryAttempt]

    @classmethod
    def of(cls, row: DeliveryRow) -> "Delivery":
        """Show a row."""
        kind = EventType(row.event.type)
        return cls(
            id=row.id,
            webhook_id=deliveries.message_id(row.job_id, row.event.version),
            type=kind,
            job_id=None if kind.is_of_batch else row.job_id,
            batch_id=row.job_id if kind.is_of_batch else None,
            endpoint_id=row.endpoint_id,
            url=row.endpoint.url,
            state=DeliveryState(row.state),
            next_attempt_at=row.next_at if row.state == DeliveryState.PENDING else None,
            created_at=row.created_at,
            finished_at=row.finished_at,
            attempts=[DeliveryAttempt.model_validate(entry) for entry in row.log],
        )


class DeliveryPage(BaseModel):
    """One page of deliveries, newest first. `next_cursor` is null on the last page."""

    deliveries: list[Delivery]
    next_cursor: str | None


class Range(BaseModel):
    """Which deliveries to replay: those that match every given field. `since` and `until` are times of the events."""

    model_config = ConfigDict(extra="forbid")

    state: Annotated[DeliveryState | None, Field(description="Null for any state.")] = DeliveryState.FAILED
    endpoint_id: UUID | None = None
    job_id: UUID | None = None
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None


class Replayed(BaseModel):
    """How many deliveries are sent again: at most 1,000 per request, the oldest first."""

    replayed: int


async def _delivery_id(delivery_id: Annotated[str, Path(description="The delivery's id.")]) -> UUID:
    try:
        return UUID(delivery_id)
    except ValueError:
        raise DeliveryNotFound from None


DeliveryId = Annotated[UUID, Depends(_delivery_id)]


@router.get("", summary="List deliveries")
def listing(
    desk: DeskDep,
    caller: Reader,
    state: Annotated[DeliveryState | None, Query()] = None,
    job_id: Annotated[UUID | None, Query()] = None,
    endpoint_id: Annotated[UUID | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=64, description="`next_cursor` of the previous page.")] = None,
) -> DeliveryPage:
    """List deliveries with all their attempts, newest first."""
    which = Filter(caller.sees_only, state, endpoint_id, job_id)
    after = cursors.decode(cursor) if cursor else None
    with desk.db.transaction() as session:
        rows = deliveries.listing(session, which, limit=limit + 1, after=after)
    page = rows[:limit]
    return DeliveryPage(
        deliveries=[Delivery.of(row) for row in page],
        next_cursor=cursors.encode(page[-1].id) if len(rows) > limit else None,
    )


@router.post("/replay", status_code=202, summary="Replay a range of deliveries", responses=documented(400))
def replay_range(wanted: Range, desk: DeskDep, caller: Submitter) -> Replayed:
    """Send the matching deliveries again; by default the failed ones."""
    conditions: dict[str, Any] = dict(wanted)
    with desk.db.transaction() as session:
        return Replayed(replayed=deliveries.replay_all(session, Filter(caller.sees_only, **conditions)))


@router.get("/{delivery_id}", summary="Show a delivery", responses=documented(404))
def show(delivery_id: DeliveryId, desk: DeskDep, caller: Reader) -> Delivery:
    """Show one delivery with all its attempts."""
    with desk.db.transaction() as session:
        return Delivery.of(deliveries.get(session, delivery_id, owner=caller.sees_only))


@router.post("/{delivery_id}/replay", status_code=202, summary="Replay a delivery", responses=documented(404, 409))
def replay(delivery_id: DeliveryId, desk: DeskDep, caller: Submitter) -> Delivery:
    """Send a delivery again at once, as the same message with the same `webhook-id`."""
    with desk.db.transaction() as session:
        row = deliveries.get(session, delivery_id, owner=caller.sees_only)
        deliveries.replay(session, row)
        return Delivery.of(row)
