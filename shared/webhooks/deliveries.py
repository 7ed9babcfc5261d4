"""Webhook deliveries: couriers claim those that are due and settle each attempt; owners list and replay them.

At-least-once: if a courier dies before it settles a delivery, the lease runs out and another sends the same message again, under
the same `webhook-id`. A courier's writes are fenced by the attempt that it claimed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, case, func, literal, literal_column, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from shared.errors import DeliveryNotFound, EndpointIsGone
from shared.infra.tables import DeliveryRow, EndpointRow, EventRow, OwnerSecretRow
from shared.jobs.outbox import EventType
from shared.webhooks import claims, endpoints
from shared.webhooks.endpoints import EndpointState

MAX_LOG = 50  # attempts that are remembered; a suspended receiver may be probed for weeks
REPLAY_LIMIT = 1000
GONE = 410
_ERROR_CHARS = 300


class DeliveryState(StrEnum):
    """The state of a delivery."""

    PENDING = "pending"
    DELIVERED = "delivered"
    # Given up; a replay starts it anew.
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Due:
    """A claimed delivery: one attempt, with everything that sending it needs."""

    id: UUID
    attempt: int
    tries: int
    job_id: UUID
    message_id: str
    type: str
    body: str = field(repr=False)
    url: str
    endpoint_id: UUID
    owner: str
    # Owner and origin: what shares it is sent a few at a time.
    lane: str
    # Those that sign, the newest first.
    secrets: tuple[str, ...] = field(repr=False)
    # The receiver is suspended and this tries whether it has come back.
    is_probe: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of an attempt. `status` is None when there was no answer."""

    status: int | None
    error: str | None
    duration_s: float
    retry_after_s: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the receiver accepted it."""
        return self.error is None

    @property
    def word(self) -> str:
        """The label of the metric: delivered, refused or unreachable."""
        return "delivered" if self.ok else "refused" if self.status else "unreachable"


def message_id(job_id: UUID, version: int) -> str:
    """Return the `webhook-id`: the same for every attempt, replay and receiver of one event, and in the feed."""
    return f"evt_{job_id.hex}_{version}"


def claim(
    session: Session,
    *,
    limit: int,
    per_owner: int,
    per_lane: int,
    ailing: bool,
    lease_s: float,
    busy: Mapping[str, int] | None = None,
    held: Mapping[str, int] | None = None,
    now: datetime | None = None,
) -> list[Due]:
    """Claim up to `limit` due deliveries, one of each owner before a second of any (`shared.webhooks.claims`).

    A lane gets at most `per_lane` less those `busy` in it, an owner at most `per_owner` less those that it has `held`. `ailing`
    claims only for receivers whose last delivery failed or that have never answered, else only for the others: each kind has
    places of its own. Concurrent claims never take the same delivery and never wait for each other.
    """
    if limit < 1:
        return []
    clock = now or session.scalars(select(func.now())).one()
    bounds = {"limit": limit, "per_owner": per_owner, "per_lane": per_lane, "lease": timedelta(seconds=lease_s)}
    taken = {"busy": json.dumps(dict(busy or {})), "held": json.dumps(dict(held or {}))}
    claimed = session.execute(claims.CLAIM, {"now": clock, "ailing": ailing, **bounds, **taken})
    lanes = {row.id: row.lane for row in claimed}
    if not lanes:
        return []
    query = select(DeliveryRow).where(DeliveryRow.id.in_(lanes)).order_by(DeliveryRow.next_at, DeliveryRow.id)
    rows = session.scalars(query, execution_options={"populate_existing": True}).all()
    borrowers = {row.owner for row in rows if row.endpoint.secret is None}
    lent = {owner: endpoints.owner_secret(session, owner) for owner in sorted(borrowers)}
    return [_due(row, lanes[row.id], lent.get(row.owner), clock) for row in rows]


def settle(
    session: Session,
    due: Due,
    outcome: Outcome,
    *,
    retry_in_s: float | None,
    suspend_after_s: float,
    probe_s: float,
    now: datetime | None = None,
) -> bool:
    """Record the result of an attempt. False when another courier has claimed the delivery since.

    A failed one is tried again after `retry_in_s`; None gives up. An endpoint that fails for `suspend_after_s` is suspended and
    probed every `probe_s`; its first success makes all its deliveries due.
    """
    clock = now or session.scalars(select(func.now())).one()
    endpoint = session.get(EndpointRow, due.endpoint_id, with_for_update=True, populate_existing=True)
    mine = (DeliveryRow.id == due.id, DeliveryRow.attempt == due.attempt, DeliveryRow.state == DeliveryState.PENDING)
    written = session.execute(
        update(DeliveryRow)
        .where(*mine)
        .values(leased_until=None, log=_logged(due, outcome, clock), **_next(due, outcome, retry_in_s, clock))
        .returning(DeliveryRow.id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if endpoint is None or written is None:
        return False
    if outcome.ok:
        _record_success(session, endpoint, clock)
    elif outcome.status == GONE:
        _mark_gone(session, endpoint, clock)
    elif due.type != EventType.PROGRESS:
        _record_failure(endpoint, outcome, suspend_after_s=suspend_after_s, probe_s=probe_s, clock=clock)
    return True


def overdue(session: Session) -> tuple[int, float]:
    """Return the number of overdue deliveries, and how long the oldest has been due, in seconds.

    Deliveries to endpoints that are suspended or on hold do not count.
    """
    late_s = func.extract("epoch", func.now() - func.min(DeliveryRow.next_at))
    open_now = (EndpointRow.state == EndpointState.ACTIVE, func.coalesce(EndpointRow.hold_until <= func.now(), True))
    count, longest_s = session.execute(
        select(func.count(), late_s)
        .join(EndpointRow, EndpointRow.id == DeliveryRow.endpoint_id)
        .where(DeliveryRow.state == DeliveryState.PENDING, DeliveryRow.next_at <= func.now(), *open_now)
    ).one()
    return count, float(longest_s or 0.0)


def get(session: Session, delivery_id: UUID, *, owner: str | None) -> DeliveryRow:
    """Return a delivery. Raises `DeliveryNotFound`, also for one of another owner."""
    row = session.get(DeliveryRow, delivery_id, populate_existing=True)
    if row is None or owner not in {None, row.owner}:
        raise DeliveryNotFound(f"There is no delivery {delivery_id}.")
    return row


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter of deliveries; None matches all. Times are those of the events."""

    owner: str | None
    state: DeliveryState | None = None
    endpoint_id: UUID | None = None
    job_id: UUID | None = None
    since: datetime | None = None
    until: datetime | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return the filter in SQL."""
        columns: list[tuple[Any, Any]] = [
            (DeliveryRow.owner, self.owner),
            (DeliveryRow.state, self.state),
            (DeliveryRow.endpoint_id, self.endpoint_id),
            (DeliveryRow.job_id, self.job_id),
        ]
        conditions = [column == value for column, value in columns if value is not None]
        times = select(EventRow.id).where(EventRow.id == DeliveryRow.event_id)
        if self.since is not None:
            conditions.append(times.where(EventRow.at >= self.since).exists())
        if self.until is not None:
            conditions.append(times.where(EventRow.at < self.until).exists())
        return conditions


def listing(session: Session, which: Filter, *, limit: int, after: UUID | None = None) -> Sequence[DeliveryRow]:
    """Return up to `limit` deliveries, newest first, that are older than the delivery `after`."""
    query = select(DeliveryRow).where(*which.conditions()).order_by(DeliveryRow.id.desc()).limit(limit)
    return session.scalars(query if after is None else query.where(DeliveryRow.id < after)).all()


def replay(session: Session, row: DeliveryRow) -> None:
    """Send a delivery again, now, as the same message. Raises `EndpointIsGone`."""
    if row.endpoint.state == EndpointState.GONE:
        raise EndpointIsGone(f"Endpoint {row.endpoint_id} has answered 410 Gone; resume it first.")
    _restart(session, DeliveryRow.id == row.id)
    session.refresh(row)


def replay_all(session: Session, which: Filter) -> int:
    """Replay the matching deliveries, oldest first, at most `REPLAY_LIMIT`, except to endpoints that are gone."""
    gone = select(EndpointRow.id).where(EndpointRow.state == EndpointState.GONE)
    chosen = (
        select(DeliveryRow.id)
        .where(*which.conditions(), DeliveryRow.endpoint_id.not_in(gone))
        .order_by(DeliveryRow.id)
        .limit(REPLAY_LIMIT)
    )
    return _restart(session, DeliveryRow.id.in_(chosen))


def _due(row: DeliveryRow, lane: str, owner_secret: OwnerSecretRow | None, clock: datetime) -> Due:
    signs: Any = row.endpoint if row.endpoint.secret else owner_secret
    old_lives = signs.old_secret and signs.old_secret_until and signs.old_secret_until > clock
    return Due(
        id=row.id,
        attempt=row.attempt,
        tries=row.tries,
        job_id=row.job_id,
        message_id=message_id(row.job_id, row.event.version),
        type=row.event.type,
        body=row.event.body or "",
        url=row.endpoint.url,
        endpoint_id=row.endpoint_id,
        owner=row.owner,
        lane=lane,
        secrets=(signs.secret, signs.old_secret) if old_lives else (signs.secret,),
        is_probe=row.endpoint.state == EndpointState.SUSPENDED,
    )


def _next(due: Due, outcome: Outcome, retry_in_s: float | None, clock: datetime) -> dict[str, Any]:
    if outcome.ok:
        return {"state": DeliveryState.DELIVERED, "finished_at": clock}
    if due.is_probe:  # it says nothing about the message; the receiver's hold decides when
        return {"next_at": clock}
    if retry_in_s is None or outcome.status == GONE:
        return {"state": DeliveryState.FAILED, "finished_at": clock, "tries": due.tries + 1}
    wait_s = max(retry_in_s, outcome.retry_after_s or 0)
    return {"next_at": clock + timedelta(seconds=wait_s), "tries": due.tries + 1}


def _logged(due: Due, outcome: Outcome, clock: datetime) -> Any:
    entry = {
        "attempt": due.attempt,
        "at": clock.isoformat(),
        "duration_s": round(outcome.duration_s, 3),
        "status": outcome.status,
        "error": outcome.error[:_ERROR_CHARS] if outcome.error else None,
    }
    log = DeliveryRow.log
    kept = case((func.jsonb_array_length(log) >= MAX_LOG, log.op("-")(literal_column("0"))), else_=log)
    return kept.op("||")(literal([entry], JSONB))


def _record_success(session: Session, endpoint: EndpointRow, clock: datetime) -> None:
    endpoint.proven_at = endpoint.proven_at or clock
    if endpoint.failing_since is None and endpoint.hold_until is None:
        return
    endpoint.failing_since, endpoint.hold_until = None, None
    if endpoint.state == EndpointState.SUSPENDED:
        endpoint.state = EndpointState.ACTIVE
    session.flush()
    endpoints.release(session, endpoint.id)


def _mark_gone(session: Session, endpoint: EndpointRow, clock: datetime) -> None:
    endpoint.state = EndpointState.GONE
    session.execute(
        update(DeliveryRow)
        .where(DeliveryRow.endpoint_id == endpoint.id, DeliveryRow.state == DeliveryState.PENDING)
        .values(state=DeliveryState.FAILED, finished_at=clock)
        .execution_options(synchronize_session=False)
    )


def _record_failure(
    endpoint: EndpointRow, outcome: Outcome, *, suspend_after_s: float, probe_s: float, clock: datetime
) -> None:
    endpoint.failing_since = endpoint.failing_since or clock
    if clock - endpoint.failing_since >= timedelta(seconds=suspend_after_s) and endpoint.state == EndpointState.ACTIVE:
        endpoint.state = EndpointState.SUSPENDED
    holds = [outcome.retry_after_s or 0, probe_s if endpoint.state == EndpointState.SUSPENDED else 0]
    if max(holds) > 0:
        endpoint.hold_until = clock + timedelta(seconds=max(holds))


def _restart(session: Session, which: ColumnElement[bool]) -> int:
    restarted = session.execute(
        update(DeliveryRow)
        .where(which)
        .values(state=DeliveryState.PENDING, tries=0, next_at=func.now(), finished_at=None)
        .returning(DeliveryRow.id)
        .execution_options(synchronize_session=False)
    )
    return len(restarted.all())
