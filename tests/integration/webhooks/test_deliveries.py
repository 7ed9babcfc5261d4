"""Webhooks from the outbox to a real receiver, verified by the standard's own library."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from random import Random
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select, text, update
from standardwebhooks import Webhook, WebhookVerificationError

from shared.infra.db import Database
from shared.infra.outbound_http import OutboundHttp
from shared.infra.tables import DeliveryRow, EndpointRow
from shared.jobs import lifecycle
from shared.jobs.outbox import ENDINGS, EventType
from shared.settings import Settings
from shared.webhooks import deliveries, endpoints
from shared.webhooks.deliveries import DeliveryState, Due, Outcome
from shared.webhooks.endpoints import EndpointState
from tests.support.factories import DEMO, params
from tests.support.receiver import Receiver, receiving, silence
from tests.support.servers import LOOPBACK, Dialler
from tests.support.waiting import until
from worker.courier import webhooks
from worker.courier.webhooks import Courier

SECRET = "whsec_" + "c2VjcmV0" * 5
PER_LANE = 4


class Clock:
    """The time as a test wants it."""

    def __init__(self) -> None:
        # A little ahead of the database's, by which deliveries become due.
        self.now = datetime.now(UTC) + timedelta(minutes=1)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as opened:
        yield opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def round_of(db: Database, settings: Settings, clock: Clock) -> Callable[[], int]:
    """One round of a courier, all that it claims delivered and settled."""

    def walk() -> int:
        courier = Courier(db, OutboundHttp(allow_private=True), settings, rng=Random(1), clock=clock)
        try:
            return courier.hand_out()
        finally:
            courier._pool.shutdown(wait=True)

    return walk


def register(db: Database, url: str, *events: EventType, secret: str = SECRET, owner: str = "anonymous") -> UUID:
    """Register a receiver that has proven itself long ago."""
    with db.transaction() as session:
        row = endpoints.register(
            session, owner=owner, url=url, events=events or ENDINGS, secret=secret, allow_private=True
        )
        row.proven_at = row.created_at
        return row.id


def cancel_one(db: Database, **submitted: Any) -> UUID:
    with db.transaction() as session:
        row = lifecycle.submit(session, params(), max_attempts=1, **submitted)
        lifecycle.cancel(session, row.id)
    return row.id


def all_deliveries(db: Database) -> list[DeliveryRow]:
    with db.transaction() as session:
        return list(session.scalars(select(DeliveryRow).order_by(DeliveryRow.id)))


def only(db: Database) -> DeliveryRow:
    (row,) = all_deliveries(db)
    return row


def endpoint(db: Database) -> EndpointRow:
    with db.transaction() as session:
        return session.scalars(select(EndpointRow)).one()


def test_a_delivery_is_verified_by_the_standards_library(
    db: Database, receiver: Receiver, round_of: Callable[[], int]
) -> None:
    register(db, receiver.url + "/hook?a=b")
    job_id = cancel_one(db)
    assert round_of() == 1
    message = receiver.next()
    told = Webhook(SECRET).verify(message.body, message.headers)
    assert message.path == "/hook?a=b"
    assert (told["type"], told["data"]["id"], told["data"]["state"]) == ("job.canceled", str(job_id), "canceled")
    assert message.headers["content-type"] == "application/json"
    assert only(db).state == DeliveryState.DELIVERED
    assert only(db).log[0]["status"] == 200
    assert round_of() == 0


@pytest.mark.parametrize("altered", ["body", "webhook-id", "webhook-timestamp", "secret"])
def test_what_was_altered_on_the_way_is_refused(
    db: Database, receiver: Receiver, round_of: Callable[[], int], altered: str
) -> None:
    register(db, receiver.url)
    cancel_one(db)
    round_of()
    message = receiver.next()
    body, headers, secret = message.body, message.headers, SECRET
    if altered == "body":
        body = body.replace(b"canceled", b"succeeded")
    elif altered == "secret":
        secret = endpoints.new_secret()
    else:
        headers = {**headers, altered: headers[altered] + "1"}
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body, headers)


def test_an_old_message_cannot_be_replayed_by_others(
    db: Database, receiver: Receiver, round_of: Callable[[], int]
) -> None:
    register(db, receiver.url)
    cancel_one(db)
    round_of()
    message = receiver.next()
    stale = str(int(message.headers["webhook-timestamp"]) - 600)
    signature = Webhook(SECRET).sign(message.id, datetime.fromtimestamp(int(stale), UTC), message.body.decode())
    with pytest.raises(WebhookVerificationError, match="old"):
        Webhook(SECRET).verify(
            message.body, {**message.headers, "webhook-timestamp": stale, "webhook-signature": signature}
        )


def test_while_a_secret_is_rotated_both_verify(
    db: Database, receiver: Receiver, round_of: Callable[[], int], clock: Clock
) -> None:
    endpoint_id = register(db, receiver.url)
    with db.transaction() as session:
        fresh = endpoints.rotate(endpoints.get(session, endpoint_id, owner=None), overlap_s=3600)
    cancel_one(db)
    round_of()
    message = receiver.next()
    for secret in (SECRET, fresh):
        Webhook(secret).verify(message.body, message.headers)
    clock.forward(3601)
    cancel_one(db)
    round_of()
    message = receiver.next()
    Webhook(fresh).verify(message.body, message.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(message.body, message.headers)


def test_a_job_may_name_its_own_receiver_signed_with_the_owners_secret(
    db: Database, receiver: Receiver, round_of: Callable[[], int]
) -> None:
    naming: dict[str, Any] = {
        "owner": "a",
        "url": receiver.url,
        "events": ["job.canceled"],
        "allow_private": True,
        "most": 9,
    }
    with db.transaction() as session:
        endpoint_id = endpoints.find_or_add(session, secret=None, **naming)
        assert endpoints.find_or_add(session, secret=None, **naming) == endpoint_id
        other = endpoints.find_or_add(session, secret=SECRET, **naming)
        assert other != endpoint_id
        secret = endpoints.owner_secret(session, "a").secret
    cancel_one(db, owner="a", endpoint_id=endpoint_id)
    cancel_one(db, owner="a", endpoint_id=other)
    cancel_one(db, owner="a")
    assert [round_of(), round_of()] == [1, 1]  # it has to prove itself first
    ids = set()
    for _ in range(2):
        message = receiver.next()
        ids.add(message.id)
        verified = [one for one in (secret, SECRET) if _verifies(one, message)]
        assert len(verified) == 1
    assert len(ids) == 2


def _verifies(secret: str, message: Any) -> bool:
    try:
        Webhook(secret).verify(message.body, message.headers)
    except WebhookVerificationError:
        return False
    return True


def test_a_failing_receiver_is_tried_for_more_than_a_day_then_given_up(
    db: Database, receiver: Receiver, round_of: Callable[[], int], clock: Clock
) -> None:
    register(db, receiver.url)
    cancel_one(db)
    began = clock.now
    receiver.answers = [(500, {})] * 99
    waits = []
    while only(db).state == DeliveryState.PENDING:
        # Keep the receiver's own suspension out of this: it is about the message.
        with db.transaction() as session:
            session.execute(update(EndpointRow).values(failing_since=None))
        assert round_of() == 1
        assert round_of() == 0
        waits.append((only(db).next_at - clock.now).total_seconds())
        clock.now = max(clock.now, only(db).next_at)
    assert len(only(db).log) == len(webhooks.BACKOFF_S) + 1
    assert (clock.now - began).total_seconds() >= 24 * 3600
    for wait, planned in zip(waits, webhooks.BACKOFF_S, strict=False):
        assert 0.8 * planned <= wait <= 1.2 * planned
    assert {entry["status"] for entry in only(db).log} == {500}
    ids = {receiver.next().id for _ in only(db).log}
    assert len(ids) == 1


def test_a_receiver_that_comes_back_gets_everything_at_once(
    db: Database, receiver: Receiver, round_of: Callable[[], int], clock: Clock
) -> None:
    register(db, receiver.url)
    receiver.answers = [(503, {})] * 4
    sent = {cancel_one(db) for _ in range(5)}
    assert round_of() == 4
    clock.forward(5 * 60)
    assert round_of() == 1  # an ailing receiver gets one at a time
    while round_of():
        pass
    assert {row.state for row in all_deliveries(db)} == {DeliveryState.DELIVERED}
    assert endpoint(db).failing_since is None
    assert {json.loads(receiver.next().body)["data"]["id"] for _ in range(9)} == {str(one) for one in sent}


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_holds_the_whole_receiver(
    db: Database, receiver: Receiver, round_of: Callable[[], int], clock: Clock, as_date: bool
) -> None:
    register(db, receiver.url)
    wish = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True) if as_date else "3600"
    receiver.answers = [(429, {"Retry_After": wish})]
    cancel_one(db)
    assert round_of() == 1
    cancel_one(db)
    clock.forward(3500)
    assert round_of() == 0
    clock.forward(200)
    assert round_of() == 1


def test_410_ends_a_receiver_until_it_is_resumed(db: Database, receiver: Receiver, round_of: Callable[[], int]) -> None:
    endpoint_id = register(db, receiver.url)
    receiver.answers = [(410, {})]
    cancel_one(db)
    round_of()
    assert endpoint(db).state == EndpointState.GONE
    assert only(db).state == DeliveryState.FAILED
    cancel_one(db)
    assert len(all_deliveries(db)) == 1
    with db.transaction() as session:
        endpoints.resume(session, endpoints.get(session, endpoint_id, owner=None))
        deliveries.replay(session, deliveries.get(session, only(db).id, owner=None))
    assert round_of() == 1
    assert only(db).state == DeliveryState.DELIVERED
    assert receiver.next().id == receiver.next().id


def test_long_failure_suspends_and_a_probe_resumes(
    db: Database, receiver: Receiver, round_of: Callable[[], int], clock: Clock, settings: Settings
) -> None:
    register(db, receiver.url)
    cancel_one(db)
    receiver.answers = [(500, {})] * 3
    round_of()
    clock.forward(settings.webhook_suspend_seconds)
    round_of()
    assert endpoint(db).state == EndpointState.SUSPENDED
    tries = only(db).tries
    cancel_one(db)  # what happens meanwhile waits for it
    assert round_of() == 0
    clock.forward(settings.webhook_probe_seconds)
    assert round_of() == 1
    assert all_deliveries(db)[0].tries <= tries  # a probe uses up no try
    assert round_of() == 0
    clock.forward(settings.webhook_probe_seconds)
    while round_of():
        pass
    assert endpoint(db).state == EndpointState.ACTIVE
    assert {row.state for row in all_deliveries(db)} == {DeliveryState.DELIVERED}


def test_a_paused_receiver_gets_nothing_until_resumed(
    db: Database, receiver: Receiver, round_of: Callable[[], int], clock: Clock
) -> None:
    endpoint_id = register(db, receiver.url)
    with db.transaction() as session:
        endpoints.pause(endpoints.get(session, endpoint_id, owner=None))
    cancel_one(db)
    clock.forward(1e6)
    assert round_of() == 0
    with db.transaction() as session:
        endpoints.resume(session, endpoints.get(session, endpoint_id, owner=None))
    assert round_of() == 1


def test_progress_is_not_tried_twice(db: Database, receiver: Receiver, round_of: Callable[[], int]) -> None:
    from worker.courier import maintenance

    register(db, receiver.url, EventType.PROGRESS)
    with db.transaction() as session:
        lifecycle.submit(session, params(), max_attempts=1)
    with db.transaction() as session:
        run = lifecycle.claim_next(session, DEMO, "w", lease_s=20)
        assert run is not None
        lifecycle.heartbeat(session, [lifecycle.Beat(run.job_id, run.attempt, 2)], lease_s=20)
    assert maintenance.record_progress(db, every_s=5) == 1
    receiver.answers = [(500, {})]
    assert round_of() == 1
    assert only(db).state == DeliveryState.FAILED
    assert endpoint(db).failing_since is None
    assert json.loads(receiver.next().body)["data"]["progress"] == {"steps_done": 2, "steps_total": 4}


def claimed(db: Database, now: datetime | None = None, **changes: Any) -> list[Due]:
    asked: dict[str, Any] = {"limit": 10, "per_owner": 100, "per_lane": 4, "ailing": False, "lease_s": 60}
    with db.transaction() as session:
        return deliveries.claim(session, now=now, **{**asked, **changes})


def settled(db: Database, due: Due, status: int = 200) -> bool:
    outcome = Outcome(status, None if status == 200 else "no", 0.1)
    with db.transaction() as session:
        return deliveries.settle(session, due, outcome, retry_in_s=5, suspend_after_s=1e6, probe_s=60)


def test_a_crash_between_delivery_and_mark_sends_the_same_message_again(
    db: Database, receiver: Receiver, clock: Clock
) -> None:
    register(db, receiver.url)
    cancel_one(db)
    (dead,) = claimed(db)
    assert webhooks.send(OutboundHttp(allow_private=True), dead).ok  # delivered, and the courier dies here
    assert claimed(db) == []
    clock.forward(61)
    (again,) = claimed(db, clock.now)
    assert webhooks.send(OutboundHttp(allow_private=True), again).ok
    assert settled(db, again)
    first, second = receiver.next(), receiver.next()
    assert (first.id, first.body) == (second.id, second.body)
    # The dead one comes back to life: its word no longer counts.
    assert not settled(db, dead, 500)
    assert only(db).state == DeliveryState.DELIVERED


def test_two_couriers_never_take_the_same(db: Database) -> None:
    for number in range(10):
        register(db, f"http://h{number}.example/")
    for _ in range(4):
        cancel_one(db)

    def take(_: int) -> list[UUID]:
        return [due.id for due in claimed(db, limit=7)]

    with ThreadPoolExecutor(4) as pool:
        taken = [one for batch in pool.map(take, range(8)) for one in batch]
    while rest := take(0):  # what one was looking at, another has stepped over
        taken += rest
    assert len(taken) == len(set(taken)) == 40


def test_a_receiver_gets_a_few_at_a_time_however_many_urls_it_has(db: Database) -> None:
    for path in "abc":
        register(db, f"http://one.example/{path}")
    register(db, "http://other.example/")
    for _ in range(5):
        cancel_one(db)
    lanes = [due.lane for due in claimed(db, limit=100)]
    assert sorted(lanes) == ["anonymous http://one.example"] * 4 + ["anonymous http://other.example"] * 4
    assert claimed(db, busy=dict.fromkeys(lanes, 4)) == []


def test_a_silent_receiver_does_not_hold_up_others(db: Database, settings: Settings, receiver: Receiver) -> None:
    """The courier runs; the slow receiver has all its places taken and is not answering; the fast one gets every message."""
    receiver.slow = {"/slow"}
    with receiving() as fast:
        register(db, receiver.url + "/slow")
        register(db, fast.url)
        courier = Courier(db, OutboundHttp(allow_private=True), settings)
        sent = {str(cancel_one(db)) for _ in range(PER_LANE * 3)}
        courier.start()
        got = {json.loads(fast.next().body)["data"]["id"] for _ in sent}
        assert got == sent
        for _ in range(PER_LANE):
            receiver.next()
        assert receiver.got.empty()
        late = str(cancel_one(db))
        courier.wake()
        assert json.loads(fast.next().body)["data"]["id"] == late
        receiver.released.set()
        courier.stop()


SILENT, EVES_SHARE, AT_ONCE_S = 900, 8, 5.0
CROWD = text("""
WITH named AS (
    INSERT INTO webhook_endpoints (id, owner, url, origin, events, registered)
    SELECT gen_random_uuid(), 'eve', origin || '/', origin, '{job.canceled}', false
    FROM generate_series(1, :count) AS n, format('http://h%s.silent.example:%s', n, :port) AS origin
    RETURNING id
), happened AS (
    INSERT INTO events (owner, job_id, version, type, body)
    SELECT 'eve', id, 1, 'job.canceled', '{}' FROM named RETURNING id, job_id
)
INSERT INTO deliveries (id, owner, job_id, event_id, endpoint_id)
SELECT gen_random_uuid(), 'eve', job_id, id, job_id FROM happened
""")


def test_one_owners_silent_receivers_hold_up_nobody_elses(db: Database, settings: Settings, receiver: Receiver) -> None:
    """Hundreds of names under one wildcard, all silent, and the courier busy with them: others hear at once."""
    outside = OutboundHttp(allow_private=True, resolve=lambda _host, _port: [LOOPBACK])
    courier = Courier(db, outside, settings)
    register(db, receiver.url + "/proven", owner="ada")
    new = register(db, receiver.url + "/new", owner="bob")
    with silence() as port:
        with db.transaction() as session:
            session.execute(CROWD, {"count": SILENT, "port": port})
            session.execute(update(EndpointRow).where(EndpointRow.id == new).values(proven_at=None))
        courier.start()
        assert until(lambda: under_way(db) == EVES_SHARE)
        began = time.monotonic()
        for owner in ("ada", "bob"):
            cancel_one(db, owner=owner)
        courier.wake()
        assert {receiver.next().path for _ in range(2)} == {"/proven", "/new"}
        waited_s = time.monotonic() - began
        assert under_way(db) <= EVES_SHARE
    courier.stop()
    assert waited_s < AT_ONCE_S


def under_way(db: Database) -> int:
    with db.transaction() as session:
        held = select(func.count()).where(DeliveryRow.leased_until > func.now(), DeliveryRow.owner == "eve")
        return session.scalars(held).one()


def test_a_name_that_is_rebound_between_attempts_is_judged_at_each(
    db: Database, settings: Settings, clock: Clock, receiver: Receiver
) -> None:
    """Public at the first attempt, inside at the second: what is dialled is what was judged for that very attempt."""
    addresses = ["93.184.216.34", LOOPBACK, "93.184.216.35"]
    dialler = Dialler(receiver.server_port)
    outside = OutboundHttp(allow_private=False, resolve=lambda _host, _port: [addresses.pop(0)], dial=dialler)
    register(db, "http://rebind.example/")
    receiver.answers = [(500, {})]
    cancel_one(db)
    while addresses:
        courier = Courier(db, outside, settings, rng=Random(1), clock=clock)
        assert courier.hand_out() == 1
        courier._pool.shutdown(wait=True)
        clock.now = max(clock.now, only(db).next_at)
    assert dialler.dialled == ["93.184.216.34", "93.184.216.35"]
    refused, blocked, delivered = only(db).log
    assert (refused["status"], blocked["status"], delivered["status"]) == (500, None, 200)
    assert "not on the public internet" in blocked["error"]


def test_the_claim_of_a_crowd_is_cheap_for_one(db: Database, receiver: Receiver) -> None:
    """A thousand waiting messages of one receiver are not walked to find those of another: the plan steps over the index."""
    register(db, "http://crowded.example/")
    job_id = cancel_one(db)
    with db.transaction() as session:
        session.execute(update(EndpointRow).values(hold_until=func.now() + timedelta(hours=1)))
    register(db, receiver.url)
    cancel_one(db)
    assert [due.url for due in claimed(db)] == [receiver.url]
    assert {row.job_id for row in all_deliveries(db)} > {job_id}


def test_a_stopped_database_or_blocked_url_is_an_outcome(db: Database) -> None:
    register(db, "http://10.0.0.1/")
    cancel_one(db)
    (due,) = claimed(db)
    outcome = webhooks.send(OutboundHttp(allow_private=False), due)
    assert (outcome.status, outcome.ok) == (None, False)
    assert "not on the public internet" in (outcome.error or "")
