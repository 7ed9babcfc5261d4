"""Events are written by the transaction that changes the job, and a reader of the feed misses none."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from shared.errors import OutOfMemory, WorkerLost
from shared.infra.db import Database
from shared.infra.tables import DeliveryRow, EndpointRow, EventRow, JobRow
from shared.jobs import lifecycle, outbox, rescue
from shared.jobs.outbox import EventType, Position
from tests.support.factories import params
from tests.support.jobs import claimed_in, submit
from tests.support.waiting import LIMIT_S, until

WAITING = text("SELECT count(*) FROM pg_locks WHERE NOT granted")


def told(db: Database) -> list[str]:
    with db.transaction() as session:
        return [event.type for event in outbox.feed(session, after=None, limit=100, owner=None)]


def listen(db: Database, *types: EventType, state: str = "active", owner: str = "anonymous") -> UUID:
    row = EndpointRow(
        id=uuid4(), owner=owner, url="http://h/", origin="http://h", events=list(types), registered=True, state=state
    )
    with db.transaction() as session:
        session.add(row)
    return row.id


def lose(session: Session) -> None:
    session.execute(update(JobRow).values(lease_until=func.now() - timedelta(seconds=1)))
    assert rescue.rescue_lost(session, lease_s=20)


ACTS: list[tuple[Callable[[Session, lifecycle.Claim], Any], list[str]]] = [
    (lambda session, run: lifecycle.succeed(session, run, []), ["job.succeeded"]),
    (lambda session, run: lifecycle.fail(session, run, Hopeless()), ["job.failed"]),
    (lambda session, run: lifecycle.fail(session, run, OutOfMemory()), []),
    (lambda session, run: lifecycle.cancel(session, run.job_id), ["job.canceled"]),
    (lambda session, run: lifecycle.release(session, run), []),
    (lambda session, _run: lose(session), []),
]


class Hopeless(WorkerLost):
    """An error that no retry helps."""

    retryable = False


@pytest.mark.parametrize(("act", "types"), ACTS)
def test_every_act_tells_what_it_did(
    db: Database, act: Callable[[Session, lifecycle.Claim], Any], types: list[str]
) -> None:
    submit(db)
    with db.transaction() as session:
        run = claimed_in(session)
    with db.transaction() as session:
        act(session, run)
    assert told(db) == ["job.started", *types]


def test_an_event_is_as_durable_as_its_change(db: Database) -> None:
    job_id = submit(db)
    with db.engine.connect() as connection, Session(connection) as session:
        lifecycle.cancel(session, job_id)
        session.rollback()
    assert told(db) == []


def test_a_zombie_tells_nothing(db: Database) -> None:
    submit(db)
    with db.transaction() as session:
        run = claimed_in(session)
    with db.transaction() as session:
        assert not lifecycle.succeed(session, lifecycle.Attempt(run.job_id, run.attempt + 1), [])
    assert told(db) == ["job.started"]


def test_an_event_that_commits_late_is_not_skipped(db: Database) -> None:
    first, second = submit(db, owner="a"), submit(db, owner="b")  # one owner's would wait for each other's share
    with db.engine.connect() as connection, Session(connection) as slow:
        lifecycle.cancel(slow, first)  # takes its id and is not committed yet
        with db.transaction() as session:
            lifecycle.cancel(session, second)
        with db.transaction() as session:
            # The later one is held back until what may come before it is known.
            assert outbox.feed(session, after=None, limit=100, owner=None) == []
        slow.commit()
    with db.transaction() as session:
        assert [event.job_id for event in outbox.feed(session, after=None, limit=9, owner=None)] == [first, second]


def test_ids_out_of_the_order_of_transactions_are_not_skipped(db: Database) -> None:
    """The older transaction takes the larger id and ends first: its event is read, and the smaller id comes after it."""
    first, second = submit(db, owner="a"), submit(db, owner="b")  # one owner's would wait for each other's share
    with db.engine.connect() as a, db.engine.connect() as b, Session(a) as older, Session(b) as younger:
        older.execute(select(func.pg_current_xact_id()))
        lifecycle.cancel(younger, first)
        lifecycle.cancel(older, second)
        older.commit()
        with db.transaction() as session:
            (seen,) = outbox.feed(session, after=None, limit=9, owner=None)
        younger.commit()
    assert seen.job_id == second
    with db.transaction() as session:
        rest = outbox.feed(session, after=Position(seen.txid, seen.id), limit=9, owner=None)
    assert [event.job_id for event in rest] == [first]
    assert rest[0].id < seen.id


def test_the_feed_is_read_in_pages_and_by_owner(db: Database) -> None:
    for owner in ("a", "b", "a"):
        with db.transaction() as session:
            lifecycle.cancel(session, lifecycle.submit(session, params(), max_attempts=1, owner=owner).id)
    with db.transaction() as session:
        (one,) = outbox.feed(session, after=None, limit=1, owner="a")
        rest = outbox.feed(session, after=Position(one.txid, one.id), limit=9, owner="a")
        assert [event.owner for event in rest] == ["a"]
        assert outbox.feed(session, after=outbox.latest(session), limit=9, owner=None) == []


def deliveries(db: Database) -> list[DeliveryRow]:
    with db.transaction() as session:
        return list(session.scalars(select(DeliveryRow).order_by(DeliveryRow.id)))


def test_nobody_listening_writes_no_delivery_and_no_body(db: Database) -> None:
    listen(db, EventType.FAILED)
    listen(db, EventType.SUCCEEDED, state="gone")
    listen(db, EventType.SUCCEEDED, owner="someone else")
    submit(db)
    with db.transaction() as session:
        assert lifecycle.succeed(session, claimed_in(session), [])
    assert deliveries(db) == []
    with db.transaction() as session:
        assert set(session.scalars(select(EventRow.body))) == {None}


def test_each_listener_gets_one_delivery_with_the_job_as_it_was(db: Database) -> None:
    both = listen(db, EventType.STARTED, EventType.SUCCEEDED)
    named = listen(db, EventType.SUCCEEDED, owner="a job of its own", state="suspended")
    with db.transaction() as session:
        lifecycle.submit(session, params(), max_attempts=1, endpoint_id=named)
    with db.transaction() as session:
        run = claimed_in(session)
    image = lifecycle.FinishedImage(0, 1, "k", "image/png", 64, 64, 9, "ab")
    with db.transaction() as session:
        assert lifecycle.succeed(session, run, [image])
    found = [(one.event.type, one.endpoint_id) for one in deliveries(db)]
    assert sorted(found) == sorted([("job.started", both), ("job.succeeded", both), ("job.succeeded", named)])
    bodies = {one.event.type: json.loads(one.event.body or "") for one in deliveries(db)}
    assert bodies["job.started"]["data"]["state"] == "running"
    assert bodies["job.succeeded"]["data"]["images"][0]["url"] == f"/v1/jobs/{run.job_id}/images/0"
    assert set(bodies["job.succeeded"]) == {"type", "timestamp", "data"}


def test_an_endpoint_that_is_deleted_meanwhile_spoils_no_end(db: Database) -> None:
    endpoint_id, job_id = listen(db, EventType.CANCELED), submit(db)

    def cancel() -> None:
        with db.transaction() as session:
            lifecycle.cancel(session, job_id)

    with ThreadPoolExecutor(1) as beside:
        with db.transaction() as session:
            session.delete(session.get_one(EndpointRow, endpoint_id))
            session.flush()
            canceling = beside.submit(cancel)
            assert until(lambda: session.scalar(WAITING))
        canceling.result(LIMIT_S)
    assert (told(db), deliveries(db)) == (["job.canceled"], [])


def test_recording_twice_tells_once(db: Database) -> None:
    listen(db, EventType.CANCELED)
    job_id = submit(db)
    with db.transaction() as session:
        lifecycle.cancel(session, job_id)
        outbox.record(session, job_id)
    assert told(db) == ["job.canceled"]
    assert len(deliveries(db)) == 1


def test_long_prompts_are_cut_to_what_a_webhook_may_carry(db: Database) -> None:
    listen(db, EventType.CANCELED)
    job_id = submit(db, prompt="é" * 9000, negative_prompt="x" * 9000)
    with db.transaction() as session:
        lifecycle.cancel(session, job_id)
    body = deliveries(db)[0].event.body or ""
    assert len(body.encode()) <= outbox.MAX_BODY_BYTES
    assert json.loads(body)["truncated"] is True
    assert json.loads(body)["data"]["params"]["prompt"].endswith("é…")


def test_progress_is_told_to_who_asked_and_not_too_often(db: Database) -> None:
    submit(db)
    with db.transaction() as session:
        run = claimed_in(session)

    def progress(steps: int, every_s: float) -> int:
        with db.transaction() as session:
            lifecycle.heartbeat(session, [lifecycle.Beat(run.job_id, run.attempt, steps)], lease_s=20)
            return outbox.record_progress(session, every_s=every_s)

    assert progress(1, 0) == 0
    listen(db, EventType.PROGRESS)
    assert progress(2, 0) == 1
    assert progress(2, 0) == 0  # has not moved
    assert progress(3, 3600) == 0  # too soon
    assert progress(4, 0) == 1
    assert [one.event.type for one in deliveries(db)] == ["job.progress"] * 2
    assert told(db) == ["job.started"]


def test_old_events_are_forgotten_with_their_deliveries(db: Database) -> None:
    kept = listen(db, EventType.CANCELED)
    for _ in range(2):
        job_id = submit(db)
        with db.transaction() as session:
            lifecycle.cancel(session, job_id)
    with db.transaction() as session:
        session.execute(update(EventRow).where(EventRow.job_id != job_id).values(at=func.now() - timedelta(days=2)))
        assert outbox.purge(session, older_than_s=86400) == 1
    assert [one.job_id for one in deliveries(db)] == [job_id]
    with db.transaction() as session:
        assert session.get(EndpointRow, kept) is not None
