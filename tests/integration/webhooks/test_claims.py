"""The claim of deliveries on the real database: its worked example and its query plan."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from shared.errors import TooManyWebhookUrls
from shared.infra.db import Database
from shared.infra.tables import DeliveryRow, EndpointRow, EventRow
from shared.webhooks import claims, deliveries, named
from tests.support.factories import DEMO
from tests.support.plans import explained

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
ENDPOINTS, EVENTS = 20, 1000
OWNERS = ("ada", "bob", "bob", "eve")
BOUNDS: dict[str, Any] = {"limit": 100, "per_owner": 100, "per_lane": 4}
FLOOD = f"""
INSERT INTO webhook_endpoints (id, owner, url, origin, events, registered, secret, proven_at)
SELECT gen_random_uuid(), 'o' || n % 7, 'http://h/', 'http://h' || n, '{{}}', true, 's', now()
FROM generate_series(1, {ENDPOINTS}) AS n;
INSERT INTO events (owner, job_id, version, type)
SELECT 'o', gen_random_uuid(), 1, 'job.succeeded' FROM generate_series(1, {EVENTS});
INSERT INTO deliveries (id, owner, job_id, event_id, endpoint_id, state, next_at)
SELECT gen_random_uuid(), webhook_endpoints.owner, gen_random_uuid(), events.id, webhook_endpoints.id,
       CASE WHEN events.id % 4 = 0 THEN 'delivered' ELSE 'pending' END, now() - events.id * interval '1 s'
FROM events, webhook_endpoints;
"""  # noqa: S608 - constants


@pytest.fixture
def flooded(db: Database) -> Database:
    with db.transaction() as session:
        session.execute(text(FLOOD))
    # What is counted must be known, as autovacuum makes it known.
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE deliveries, webhook_endpoints"))
    return db


def add_endpoint(db: Database, lane: str, due_at: dict[str, str], **columns: datetime | None) -> dict[UUID, str]:
    """Add an endpoint with deliveries, given by name and time of day. Returns their names by id."""
    owner, origin = lane.split()
    columns = {"proven_at": NOW, **columns}
    names = {uuid4(): name for name in due_at}
    with db.transaction() as session:
        endpoint = EndpointRow(
            id=uuid4(), owner=owner, url=origin, origin=origin, events=[], registered=True, secret="s", **columns
        )
        session.add(endpoint)
        for row_id, name in names.items():
            job_id = uuid4()
            at = datetime.combine(NOW.date(), datetime.strptime(due_at[name], "%H:%M").replace(tzinfo=UTC).timetz())
            event = EventRow(owner=owner, job_id=job_id, version=1, type="job.succeeded", body="{}")
            row = DeliveryRow(id=row_id, owner=owner, job_id=job_id, event=event, endpoint=endpoint, next_at=at)
            session.add(row)
    return names


def test_the_worked_example_of_a_claim(db: Database) -> None:
    """What the docstring of `shared.webhooks.claims` tells."""
    ada, bob, failing, silent = (f"{who} https://{host}.example" for who, host in zip(OWNERS, "abde", strict=True))
    names = add_endpoint(db, ada, {"D1": "11:57", "D2": "11:58", "D3": "11:59"})
    names |= add_endpoint(db, ada, {"D4": "11:56"})
    names |= add_endpoint(db, bob, {"D5": "11:58", "D6": "11:59", "D7": "12:05"})
    names |= add_endpoint(db, "bob https://c.example", {"D8": "11:50"}, hold_until=NOW + timedelta(minutes=30))
    names |= add_endpoint(db, failing, {"D9": "11:50"}, failing_since=NOW - timedelta(hours=1))
    names |= add_endpoint(db, silent, {"D10": "11:50"}, proven_at=None)

    def claim(busy: dict[str, int], held: dict[str, int], *, ailing: bool = False) -> set[tuple[str, str, int]]:
        about: dict[str, Any] = {"limit": 10, "per_owner": 2, "per_lane": 2, "lease_s": 30, "now": NOW}
        with db.transaction() as session:
            taken = deliveries.claim(session, ailing=ailing, busy=busy, held=held, **about)
        return {(names[due.id], due.lane, due.attempt) for due in taken}

    assert claim({ada: 1}, {"ada": 1}) == {("D4", ada, 1), ("D5", bob, 1), ("D6", bob, 1)}
    # The share of each is taken, and what is leased is not taken again.
    assert claim({}, {"ada": 2}) == set()
    assert claim({}, {}, ailing=True) == {("D9", failing, 1), ("D10", silent, 1)}


def test_one_who_proves_itself_proves_its_origin(db: Database) -> None:
    """A client may give each job a URL of its own at one host: that host need not prove itself for each."""
    names = add_endpoint(db, "ada https://a.example", {"D1": "11:57"}, proven_at=None)
    names |= add_endpoint(db, "ada https://a.example", {}, proven_at=NOW)
    add_endpoint(db, "bob https://a.example", {"D2": "11:57"}, proven_at=None)
    with db.transaction() as session:
        taken = deliveries.claim(session, ailing=False, lease_s=30, now=NOW, **BOUNDS)
    assert [names[due.id] for due in taken] == ["D1"]


@pytest.mark.parametrize("is_generic", [False, True])
def test_a_claim_steps_over_the_index(flooded: Database, is_generic: bool) -> None:
    """However often a connection has claimed: the driver prepares what it repeats, and Postgres then plans for any values."""
    about = {"now": NOW, "lease": timedelta(seconds=30), "ailing": False, **BOUNDS}
    none = json.dumps({})
    plan = explained(flooded, claims.CLAIM, {**about, "busy": none, "held": none}, is_generic=is_generic)
    of_endpoints = {"webhook_endpoints_pkey", "webhook_endpoints_proven"}
    assert {"deliveries_waiting", "deliveries_pkey"} <= plan.indexes
    assert plan.indexes <= {"deliveries_waiting", "deliveries_pkey", *of_endpoints}
    assert "deliveries" not in plan.read_whole


NAMING = text(f"""
INSERT INTO jobs (id, state, owner, checkpoint, params, max_attempts, steps_total, endpoint_id)
SELECT gen_random_uuid(), CASE WHEN n % 2 = 0 THEN 'queued' ELSE 'succeeded' END, 'o0', '{DEMO}', '{{}}', 1, 1,
       (SELECT id FROM webhook_endpoints WHERE owner = 'o0' LIMIT 1)
FROM generate_series(1, 5000) AS n
""")  # noqa: S608 - constants
READ = text("SELECT seq_tup_read, idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'deliveries'")


def test_a_claim_reads_a_few_of_each_crowd(flooded: Database) -> None:
    """Counted by Postgres itself, for EXPLAIN does not show the step from endpoint to endpoint."""
    with flooded.transaction() as session:
        taken = deliveries.claim(session, ailing=False, lease_s=30, **BOUNDS)
        whole, by_index = session.execute(READ).one()
    assert len(taken) == ENDPOINTS * 4
    assert whole == 0
    assert by_index < 200 * ENDPOINTS


def test_a_claim_gives_each_owner_its_turn_and_locks_no_more_than_it_takes(flooded: Database) -> None:
    """Seven owners with thousands of due deliveries each, first for seven places; then two have had most of their share."""
    with flooded.transaction() as session, flooded.transaction() as other:
        first = deliveries.claim(session, ailing=False, lease_s=30, limit=7, per_owner=3, per_lane=4)
        held = {"o1": 3, "o2": 2}
        second = deliveries.claim(other, ailing=False, lease_s=30, limit=100, per_owner=3, per_lane=4, held=held)
    assert sorted(due.owner for due in first) == [f"o{number}" for number in range(7)]
    assert Counter(due.owner for due in second) == {"o0": 3, "o2": 1, "o3": 3, "o4": 3, "o5": 3, "o6": 3}
    assert not {due.id for due in first} & {due.id for due in second}


def test_urls_in_use_are_counted_by_steps(flooded: Database) -> None:
    """Thousands of deliveries wait for the two URLs of one owner, and jobs by the thousand name one of them."""
    with flooded.transaction() as session:
        session.execute(text("UPDATE webhook_endpoints SET registered = false"))
        session.execute(NAMING)
    with flooded.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE jobs, deliveries, webhook_endpoints"))
    with flooded.transaction() as session:
        named.make_room(session, "o0", most=3)
        whole, by_index = session.execute(READ).one()
        with pytest.raises(TooManyWebhookUrls):
            named.make_room(session, "o0", most=2)
    assert (whole, by_index < 20) == (0, True)
    plan = explained(flooded, named.IN_USE, {"owner": "o0"})
    assert plan.indexes >= {"deliveries_waiting", "jobs_naming", "batches_naming"}
    assert plan.read_whole <= {"webhook_endpoints"}
