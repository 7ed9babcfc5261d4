"""What waits at many checkpoints, on the real database: as claims would find it, by bounded probes."""

from collections.abc import Sequence
from datetime import timedelta
from random import Random

import pytest
from sqlalchemy import func, text, update

from api.auth import keys
from api.auth.keys import NewKey
from shared.infra.db import Database
from shared.infra.tables import JobRow, PriorityClockRow
from shared.jobs import lifecycle
from tests.support.factories import DEMO, hires, params
from tests.support.jobs import row, submit, submit_many
from tests.support.plans import LIBRARIES, explained
from worker.fleet.waiting import COUNTED, FARTHEST, WAITING, Waiting, waiting

NAMES = ["a", "b", "c", "d"]
# What the statement may read.
INDEXES = {
    *("jobs_queued", "jobs_queued_by_owner", "jobs_running_by_owner"),
    *("keys_pkey", "shares_pkey", "priority_clocks_pkey", "holdings_pkey", "ix_holdings_checkpoint"),
}
FLOOD = f"""
INSERT INTO jobs (id, state, owner, checkpoint, params, max_attempts, steps_total, virtual_start, parked)
SELECT gen_random_uuid(), CASE WHEN n % 4 = 0 THEN 'queued' WHEN n % 100 = 1 THEN 'running' ELSE 'succeeded' END,
       'o' || n % 7, '{DEMO}', '{{}}', 1, 1, n, n % 8 = 0
FROM generate_series(1, 20000) AS n;
INSERT INTO keys (id, name, prefix, hash, scopes, max_running)
SELECT 'o' || n, 'k', n, '', '{{}}', 10 FROM generate_series(0, 2000) AS n;
INSERT INTO priority_clocks (priority) SELECT n FROM generate_series(0, 1999) AS n;
INSERT INTO shares (checkpoint, priority, owner, finish) SELECT 'c' || n / 20, 0, n % 20, 0 FROM generate_series(0, 1999) AS n;
"""  # noqa: S608 - constants


def told(db: Database, names: Sequence[str] = NAMES) -> dict[str, Waiting]:
    with db.transaction() as session:
        return {one.checkpoint: one for one in waiting(session, "w", names)}


def key(db: Database, **limits: object) -> str:
    with db.transaction() as session:
        return keys.create(session, NewKey.model_validate({"name": "k", **limits}))[0].id


def test_what_waits_first_is_what_a_claim_takes(db: Database) -> None:
    """Whatever is paused, at its limit, parked, not due, past its time or for others: until nothing is left, nor told of."""
    random = Random(7)
    second = [None, None, None, hires(checkpoint="lacking")]
    owners = ["anonymous", key(db, max_running=1), key(db, max_running=2, weight=3.0), key(db, paused=True)]
    ids = [
        submit(
            db,
            checkpoint=random.choice(NAMES),
            owner=random.choice(owners),
            priority=random.choice((0, 0, 5)),
            hires=random.choice(second),
        )
        for _ in range(60)
    ]
    with db.transaction() as session:
        for column in (JobRow.not_before, JobRow.expires_at):
            at = func.now() + timedelta(hours=1 if column is JobRow.not_before else -1)
            session.execute(update(JobRow).where(JobRow.id.in_(random.sample(ids, 5))).values({column: at}))
    claims = 0
    while found := told(db):
        for name in NAMES:
            with db.transaction() as session:
                clocks = {one.priority: one.virtual_now for one in session.query(PriorityClockRow)}
                expected = {one.checkpoint: one for one in waiting(session, "w", [name])}.get(name)
                taken = lifecycle.claim_next(session, name, "w", lease_s=60)
            assert (expected is None) == (taken is None)
            if taken is not None and expected is not None:
                job = row(db, taken.job_id)
                assert (job.priority, job.virtual_start - clocks[job.priority]) == (expected.priority, expected.lag)
                claims += 1
        with db.transaction() as session:  # what runs ends, so that limits leave room
            session.execute(update(JobRow).where(JobRow.state == "running").values(state="succeeded"))
        assert found.keys() <= set(NAMES)
    assert claims > 15
    with db.transaction() as session:
        assert all(lifecycle.claim_next(session, name, "w", lease_s=60) is None for name in NAMES)


def test_what_waits_is_counted_up_to_a_bound(db: Database) -> None:
    submit_many(db, COUNTED - 1, checkpoint="a")
    submit_many(db, COUNTED + 5, checkpoint="b")
    found, each = told(db), params().cost
    assert {name: (one.jobs, one.cost, one.is_all) for name, one in found.items()} == {
        "a": (COUNTED - 1, (COUNTED - 1) * each, True),
        "b": (COUNTED, COUNTED * each, False),
    }


def test_it_tells_how_long_the_first_has_waited(db: Database) -> None:
    first = submit(db, checkpoint="a")
    submit(db, checkpoint="a")
    with db.transaction() as session:
        session.execute(update(JobRow).where(JobRow.id == first).values(created_at=func.now() - timedelta(hours=2)))
    assert told(db)["a"].oldest_s == pytest.approx(7200, abs=60)


def test_more_jobs_than_are_walked_hide_nobody_elses(db: Database) -> None:
    paused = key(db, paused=True)
    lifecycle_params = params(checkpoint="a").model_dump_json()
    with db.transaction() as session:
        session.execute(
            text("""
            INSERT INTO jobs (id, owner, checkpoint, params, max_attempts, steps_total, virtual_start, cost)
            SELECT gen_random_uuid(), :owner, 'a', cast(:params AS jsonb), 1, 1, -n, 1 FROM generate_series(1, :count) AS n
            """),
            {"owner": paused, "params": lifecycle_params, "count": FARTHEST},
        )
    assert told(db) == {}
    able = submit(db, checkpoint="a", owner="able")
    one = told(db)["a"]
    assert (one.jobs, one.cost) == (1, row(db, able).cost)


@pytest.mark.parametrize("plan_of", ["these values", "any values"])
def test_what_waits_is_read_by_index(db: Database, plan_of: str) -> None:
    with db.transaction() as session:
        session.execute(text(FLOOD + LIBRARIES))
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE jobs, keys, holdings, shares, priority_clocks"))
    plan = explained(db, WAITING, {"worker_id": "w", "checkpoints": [DEMO, *NAMES]}, is_generic=plan_of == "any values")
    assert plan.indexes == INDEXES
    assert plan.read_whole == set()
