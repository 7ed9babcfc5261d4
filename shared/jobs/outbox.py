"""Transactional outbox: events of jobs, written in the transaction of the change, so that neither exists without the other.

Code that starts or ends jobs calls `record` with their ids. Without webhook endpoints that costs one INSERT. With endpoints it
also writes the webhook's body and one delivery for each endpoint; couriers send them (`shared.webhooks.deliveries`).
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import (
    and_,
    any_,
    bindparam,
    case,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    text,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, aliased
from uuid_utils.compat import uuid7

from shared.infra.tables import BatchRow, DeliveryRow, EndpointRow, EventRow, JobRow
from shared.jobs import batches
from shared.jobs.wire import Batch, Job
from shared.vocabulary.states import JobState

MAX_BODY_BYTES = 20_000  # what Standard Webhooks asks of payloads
PURGE_BATCH = 10_000
_LONG_TEXT_CHARS = 500


class EventType(StrEnum):
    """The types of events, of jobs and of batches."""

    STARTED = "job.started"
    PROGRESS = "job.progress"
    SUCCEEDED = "job.succeeded"
    FAILED = "job.failed"
    CANCELED = "job.canceled"
    EXPIRED = "job.expired"
    BATCH_FINISHED = "batch.finished"

    @property
    def is_of_batch(self) -> bool:
        """Whether it is an event of a batch, not of a job."""
        return self is EventType.BATCH_FINISHED


ENDINGS = (EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELED, EventType.EXPIRED)
_TYPES = {JobState.RUNNING: EventType.STARTED, **{JobState(one.removeprefix("job.")): one for one in ENDINGS}}


@dataclass(frozen=True, slots=True)
class Position:
    """A position in the event feed. Events that become visible later come after it."""

    txid: int
    id: int


def record(session: Session, *job_ids: UUID) -> None:
    """Write the events of jobs whose state this transaction has changed.

    A requeued job has no event. Recording the same change twice is harmless. The last job of a batch to end also ends the batch.
    """
    if job_ids:
        _write(session, _RECORDING, {"job_ids": job_ids})


def record_progress(session: Session, *, every_s: float, limit: int = 1000) -> int:
    """Write progress events of running jobs, where an endpoint wants them. Returns how many."""
    if not session.scalar(select(exists().where(literal(EventType.PROGRESS.value) == any_(EndpointRow.events)))):
        return 0
    told, listener = aliased(EventRow), _listeners()
    recently = and_(told.type == EventType.PROGRESS, told.at > func.now() - timedelta(seconds=every_s))
    moved = (
        select(JobRow.owner, JobRow.id, JobRow.version, literal(EventType.PROGRESS.value))
        .where(
            JobRow.state == JobState.RUNNING,
            JobRow.steps_done > 0,
            select(1).where(literal(EventType.PROGRESS.value) == any_(listener.c.events)).exists(),
            ~exists().where(told.job_id == JobRow.id, or_(told.version == JobRow.version, recently)),
        )
        .limit(limit)
        # A job whose state is just changing has better news than its progress.
        .with_for_update(skip_locked=True)
    )
    return _write(session, _written(moved))


def feed(session: Session, *, after: Position | None, limit: int, owner: str | None) -> Sequence[EventRow]:
    """Return the next events of an owner, or of all. A later call never returns one that sorts before these."""
    query = (
        select(EventRow)
        .where(EventRow.txid < _horizon(), EventRow.type != EventType.PROGRESS)
        .order_by(EventRow.txid, EventRow.id)
        .limit(limit)
    )
    if after is not None:
        query = query.where(tuple_(EventRow.txid, EventRow.id) > (after.txid, after.id))
    if owner is not None:
        query = query.where(EventRow.owner == owner)
    return session.scalars(query).all()


def latest(session: Session) -> Position:
    """Return the end of the feed as it is now."""
    return Position(session.scalars(select(_horizon())).one() - 1, 2**63 - 1)


def purge(session: Session, *, older_than_s: float) -> int:
    """Delete old events with their deliveries, and unregistered endpoints long unused. Returns how many events."""
    cutoff = func.now() - timedelta(seconds=older_than_s)
    oldest = select(EventRow.id).order_by(EventRow.id).limit(PURGE_BATCH)
    gone = session.execute(delete(EventRow).where(EventRow.id.in_(oldest), EventRow.at < cutoff).returning(EventRow.id))
    session.execute(
        delete(EndpointRow).where(
            ~EndpointRow.registered,
            EndpointRow.used_at < cutoff,
            ~exists().where(DeliveryRow.endpoint_id == EndpointRow.id),
        )
    )
    return len(gone.all())


def body_of(kind: str, job: Job, at: str) -> str:
    """Return the body of a webhook: the Job as the API shows it, long texts cut beyond `MAX_BODY_BYTES`."""
    data = job.model_dump(mode="json", exclude={"outlook"})
    whole = _dumped(kind, at, data)
    if len(whole.encode()) <= MAX_BODY_BYTES:
        return whole
    return _dumped(kind, at, {**data, "params": _shortened(data["params"])}, truncated=True)


def _write(session: Session, writing: Any, parameters: Mapping[str, Any] | None = None) -> int:
    """Insert events by a statement of `_written`, with their deliveries. Returns how many."""
    told = session.execute(writing, parameters).all()
    heard = [row for row in told if row.endpoint_id is not None]
    _describe(session, {row.id: row for row in heard}.values())
    there = _held(session, {row.endpoint_id for row in heard})
    if deliveries := [_delivery(row) for row in heard if row.endpoint_id in there]:
        session.execute(insert(DeliveryRow), deliveries)
    events = {row.id: row for row in told}
    ended = Counter(row.batch_id for row in events.values() if row.batch_id is not None and row.type in ENDINGS)
    for batch in batches.count_down(session, ended):
        _end(session, batch)
    return len(events)


def _describe(session: Session, events: Collection[Any]) -> None:
    """Write the bodies of events that somebody hears of: each job as it is now."""
    if not events:
        return
    changed = select(JobRow).where(JobRow.id.in_([event.job_id for event in events]))
    jobs = {row.id: row for row in session.scalars(changed.execution_options(populate_existing=True))}
    prefix = session.info.get("root_path", "")
    bodies = [
        {"id": event.id, "body": body_of(event.type, Job.of(jobs[event.job_id], prefix=prefix), _stamp(event.at))}
        for event in events
    ]
    session.execute(update(EventRow), bodies)


def _end(session: Session, batch: BatchRow) -> None:
    """Write the event and the deliveries of a batch whose last job has just ended."""
    kind = EventType.BATCH_FINISHED
    event = EventRow(owner=batch.owner, job_id=batch.id, version=1, type=kind, body=None)
    session.add(event)
    session.flush()
    listeners = select(EndpointRow.id).where(
        EndpointRow.state != "gone",
        literal(kind.value) == any_(EndpointRow.events),
        or_(and_(EndpointRow.owner == batch.owner, EndpointRow.registered), EndpointRow.id == batch.endpoint_id),
    )
    hearing = session.scalars(listeners).all()
    if hearing:
        session.refresh(event, ["at"])
        told = Batch.of(batch, batches.tallies(session, [batch.id])[batch.id])
        event.body = _dumped(kind, _stamp(event.at), told.model_dump(mode="json"))
        session.flush()
        about = {"owner": batch.owner, "job_id": batch.id, "event_id": event.id}
        if deliveries := [{"id": uuid7(), **about, "endpoint_id": one} for one in _held(session, hearing)]:
            session.execute(insert(DeliveryRow), deliveries)


def _written(changed: Any) -> Any:
    """Return the statement that inserts events from a SELECT of (owner, job, version, type) and returns who hears of them."""
    columns = [EventRow.owner, EventRow.job_id, EventRow.version, EventRow.type]
    written = (
        insert(EventRow)
        .from_select(columns, changed)
        .on_conflict_do_nothing(index_elements=[EventRow.job_id, EventRow.version])
        .returning(EventRow.id, EventRow.owner, EventRow.job_id, EventRow.type, EventRow.at)
        .cte("written")
    )
    listener = _listeners()
    return (
        select(written, JobRow.batch_id, listener.c.id.label("endpoint_id"))
        .join(JobRow, JobRow.id == written.c.job_id)
        .outerjoin(listener, written.c.type == any_(listener.c.events))
    )


def _held(session: Session, endpoint_ids: Collection[UUID]) -> Set[UUID]:
    """Keep endpoints from being deleted until the transaction ends; return those that are still there."""
    if not endpoint_ids:
        return set()
    found = select(EndpointRow.id).where(EndpointRow.id.in_(endpoint_ids)).order_by(EndpointRow.id)
    return set(session.scalars(found.with_for_update(read=True, key_share=True)))


def _listeners() -> Any:
    """Select the endpoints of a job: those that its owner has registered, and the one that it names itself."""
    columns = select(EndpointRow.id, EndpointRow.events).where(EndpointRow.state != "gone")
    registered = columns.where(EndpointRow.owner == JobRow.owner, EndpointRow.registered).correlate(JobRow)
    named = columns.where(EndpointRow.id == JobRow.endpoint_id).correlate(JobRow)
    return union_all(registered, named).lateral("listener")


def _delivery(row: Any) -> Mapping[str, Any]:
    return {
        "id": uuid7(),
        "owner": row.owner,
        "job_id": row.job_id,
        "event_id": row.id,
        "endpoint_id": row.endpoint_id,
    }


def _horizon() -> Any:
    # Every transaction below it has ended; nothing can be committed there any more.
    return text("pg_snapshot_xmin(pg_current_snapshot())::text::bigint")


def _stamp(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _dumped(kind: str, at: str, data: Any, **more: Any) -> str:
    return json.dumps({"type": kind, "timestamp": at, "data": data, **more}, separators=(",", ":"), ensure_ascii=False)


def _shortened(value: Any) -> Any:
    match value:
        case str() if len(value) > _LONG_TEXT_CHARS:
            return value[: _LONG_TEXT_CHARS - 1] + "…"
        case dict():
            return {name: _shortened(one) for name, one in value.items()}
        case list():
            return [_shortened(one) for one in value]
    return value


# Every claim and every end of a job runs it, and to put it together takes longer than Postgres takes for it.
_RECORDING = _written(
    select(JobRow.owner, JobRow.id, JobRow.version, case(_TYPES, value=JobRow.state)).where(
        JobRow.id.in_(bindparam("job_ids", expanding=True)), JobRow.state.in_(_TYPES)
    )
)
