"""The claim of deliveries on the real database: its worked example and its query plan."""

import json
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from shared.infra.db import Database
from shared.infra.tables import DeliveryRow, EndpointRow, EventRow
from shared.webhooks import claims, deliveries
from tests.support.plans import explained

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
ENDPOINTS, EVENTS = 20, 1000
FLOOD = f"""
INSERT INTO webhook_endpoints (id, owner, url, origin, events, registered)
SELECT gen_random_uuid(), 'o' || n % 7, 'http://h/', 'http://h' || n, '{{}}', true FROM generate_series(1, {ENDPOINTS}) AS n;
INSERT INTO events (owner, job_id, version, type)
SELECT 'o', gen_random_uuid(), 1, 'job.succeeded' FROM generate_series(1, {EVENTS});
INSERT INTO deliveries (id, owner, job_id, event_id, endpoint_id, state, next_at)
SELECT gen_random_uuid(), 'o', gen_random_uuid(), events.id, webhook_endpoints.id,
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


def add_endpoint(db: Database, lane: str, due_at: dict[str, str], **columns: datetime) -> dict[UUID, str]:
    """Add an endpoint with deliveries, given by name and time of day. Returns their names by id."""
    owner, origin = lane.split()
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
    ada, bob = "ada https://a.example", "bob https://b.example"
    names = add_endpoint(db, ada, {"D1": "11:57", "D2": "11:58", "D3": "11:59"})
    names |= add_endpoint(db, ada, {"D4": "11:56"})
    names |= add_endpoint(db, bob, {"D5": "11:59", "D6": "12:05"})
    names |= add_endpoint(db, "bob https://c.example", {"D7": "11:50"}, hold_until=NOW + timedelta(minutes=30))
    names |= add_endpoint(db, "bob https://d.example", {"D8": "11:50"}, failing_since=NOW - timedelta(hours=1))

    def claim(*, ailing: bool, busy: dict[str, int]) -> list[tuple[str, str, int]]:
        with db.transaction() as session:
            taken = deliveries.claim(session, limit=10, per_lane=2, ailing=ailing, lease_s=30, busy=busy, now=NOW)
        return [(names[due.id], due.lane, due.attempt) for due in taken]

    assert claim(ailing=False, busy={ada: 1}) == [("D4", ada, 1), ("D5", bob, 1)]
    # Both of the lane's places are taken, and what is leased is not taken again.
    assert claim(ailing=False, busy={ada: 2, bob: 1}) == []
    assert claim(ailing=True, busy={}) == [("D8", "bob https://d.example", 1)]


@pytest.mark.parametrize("is_generic", [False, True])
def test_a_claim_steps_over_the_index(flooded: Database, is_generic: bool) -> None:
    """However often a connection has claimed: the driver prepares what it repeats, and Postgres then plans for any values."""
    about = {"now": NOW, "lease": timedelta(seconds=30), "ailing": False, "per_lane": 4, "limit": 100}
    plan = explained(flooded, claims.CLAIM, {**about, "busy": json.dumps({})}, is_generic=is_generic)
    assert plan.indexes >= {"deliveries_due", "deliveries_pkey"}
    assert plan.indexes <= {"deliveries_due", "deliveries_pkey", "webhook_endpoints_pkey"}
    assert "deliveries" not in plan.read_whole


def test_a_claim_reads_a_few_of_each_crowd(flooded: Database) -> None:
    """Counted by Postgres itself, for EXPLAIN does not show the step from endpoint to endpoint."""
    read = text("SELECT seq_tup_read, idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'deliveries'")
    with flooded.transaction() as session:
        taken = deliveries.claim(session, limit=100, per_lane=4, ailing=False, lease_s=30)
        whole, by_index = session.execute(read).one()
    assert len(taken) == ENDPOINTS * 4
    assert whole == 0
    assert by_index < 100 * ENDPOINTS
