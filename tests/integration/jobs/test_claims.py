"""The claim statement on the real database: its worked example and its query plan."""

from typing import Any

import pytest
from sqlalchemy import text

from api.auth import keys
from api.auth.keys import NewKey
from shared.fleet import holdings
from shared.fleet.holdings import Holding, Tier
from shared.infra.db import Database
from shared.infra.tables import PriorityClockRow
from shared.jobs import claims, lifecycle
from tests.support.factories import DEMO, hires, params
from tests.support.fleet import enlist, hold
from tests.support.jobs import claim, claimed, claimed_in, submit, submit_many
from tests.support.plans import LIBRARIES, explained
from worker.fleet.waiting import waiting

STATEMENTS = {"first": claims.FIRST, "oldest level": claims.OLDEST_LEVEL}
# What each statement may read, by the docstring of `shared.jobs.claims`.
INDEXES = {
    "jobs_queued",
    "jobs_running_by_owner",
    "jobs_pkey",
    "jobs_queued_by_owner",
    "keys_pkey",
    "holdings_pkey",
    "ix_holdings_checkpoint",
    "clocks_pkey",
    "priority_clocks_pkey",
    "jobs_queued_by_start",
}
FLOOD = f"""
INSERT INTO jobs (id, state, owner, checkpoint, params, max_attempts, steps_total, virtual_start, parked)
SELECT gen_random_uuid(), CASE WHEN n % 4 = 0 THEN 'queued' WHEN n % 100 = 1 THEN 'running' ELSE 'succeeded' END,
       'o' || n % 7, '{DEMO}', '{{}}', 1, 1, n, n % 8 = 0
FROM generate_series(1, 20000) AS n;
INSERT INTO keys (id, name, prefix, hash, scopes, max_running)
SELECT 'o' || n, 'k', n, '', '{{}}', 10 FROM generate_series(0, 2000) AS n;
INSERT INTO clocks (checkpoint, priority) SELECT 'c' || n / 20, n % 20 FROM generate_series(0, 1999) AS n;
INSERT INTO priority_clocks (priority) SELECT n FROM generate_series(0, 1999) AS n;
"""  # noqa: S608 - constants


def test_the_worked_example_of_a_claim(db: Database) -> None:
    """What the docstring of `shared.jobs.claims` tells, line by line."""
    with db.transaction() as session:
        ada, bob = (
            keys.create(session, NewKey(name=name, weight=weight, max_running=limit))[0].id
            for name, weight, limit in (("ada", 1.0, 1), ("bob", 2.0, None))
        )
    unit = params().cost / 8

    def submit(owner: str) -> tuple[Any, tuple[float, float, bool]]:
        with db.transaction() as session:
            row = lifecycle.submit(session, params(), max_attempts=1, owner=owner)
        return row.id, (row.virtual_start / unit, row.virtual_finish / unit, row.parked)

    def claim() -> lifecycle.Claim | None:
        with db.transaction() as session:
            return lifecycle.claim_next(session, DEMO, "w", lease_s=20)

    def clock() -> float:
        with db.transaction() as session:
            return session.get_one(PriorityClockRow, 0).virtual_now / unit

    a1, a1_turn = submit(ada)
    a2, a2_turn = submit(ada)
    b1, b1_turn = submit(bob)
    assert (a1_turn, a2_turn, b1_turn) == ((0, 8, False), (8, 16, True), (0, 4, False))

    first = claim()
    assert first is not None
    assert (first.job_id, first.is_limited, clock()) == (a1, True, 0)
    with db.transaction() as session:
        assert not lifecycle.get(session, a2).parked
    second = claim()
    assert second is not None
    assert (second.job_id, second.is_limited, clock()) == (b1, False, 0)
    assert claim() is None

    with db.transaction() as session:
        assert lifecycle.succeed(session, first, [])
    third = claim()
    assert third is not None
    assert (third.job_id, clock()) == (a2, 8)
    assert submit(bob)[1] == (8, 12, False)


def library(db: Database, worker: str, **refused: str | None) -> None:
    """What a worker can load, and why not."""
    enlist(db, worker)
    with db.transaction() as session:
        held = [Holding(name, 1, Tier.DISK, 1.0, refused=why) for name, why in refused.items()]
        holdings.hold(session, worker, held)


def test_a_job_is_taken_by_a_worker_that_can_render_both_of_its_passes(db: Database) -> None:
    """Others take what stands behind it, and see nothing else wait."""
    both = submit(db, hires=hires(checkpoint="second"))
    library(db, "lacks")
    library(db, "bad", second="second.safetensors: truncated.")
    library(db, "able", second=None)
    plain = submit(db)
    for worker, job_id, jobs in (("lacks", plain, 1), ("bad", plain, 1), ("able", both, 2)):
        with db.transaction() as session:
            (told,) = waiting(session, worker, [DEMO])
            assert told.jobs == jobs
            assert claimed_in(session, worker).job_id == job_id
            session.rollback()
    assert claimed(db, "bad").job_id == plain
    assert claim(db, "bad") is claim(db, "lacks", oldest_level=True) is None
    assert claimed(db, "able").job_id == both


def test_a_job_waits_for_a_second_checkpoint_that_nobody_has_and_is_taken_once_it_is_refused(db: Database) -> None:
    """By a worker that knows why, so that the job can fail with the reason."""
    job_id = submit(db, hires=hires(checkpoint="second"))
    library(db, "lacks")
    assert claim(db, "lacks") is None
    library(db, "bad", second="second.safetensors: truncated.")
    assert claim(db, "lacks") is None
    assert claimed(db, "bad").job_id == job_id


@pytest.mark.parametrize("oldest_level", [False, True])
def test_a_claim_waits_for_none_that_has_not_ended(db: Database, *, oldest_level: bool) -> None:
    """One that has moved the clocks holds them until its transaction ends; others claim meanwhile and leave them alone."""
    hold(db, "w", DEMO, "elsewhere")
    submit_many(db, 4, owner="flood")
    assert claim(db)
    submit_many(db, 1, owner="patient", checkpoint="elsewhere")
    taken = []
    with db.transaction() as slow:
        taken.append(lifecycle.claim_next(slow, DEMO, "w", lease_s=20, oldest_level=oldest_level))
        for name in (DEMO, "elsewhere"):
            with db.transaction() as session:
                session.execute(text("SET LOCAL lock_timeout = '5s'"))
                taken.append(lifecycle.claim_next(session, name, "w", lease_s=20, oldest_level=oldest_level))
    assert len({one.job_id for one in taken if one}) == 3


@pytest.mark.parametrize("plan_of", ["these values", "any values"])
@pytest.mark.parametrize("which", STATEMENTS)
def test_a_claim_walks_indexes_in_their_order(db: Database, which: str, plan_of: str) -> None:
    """However often a connection has claimed: the driver prepares what it repeats, and Postgres then plans for any values."""
    with db.transaction() as session:
        session.execute(text(FLOOD + LIBRARIES))
    # What is counted must be known, as autovacuum makes it known.
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE jobs, keys, holdings, clocks, priority_clocks"))
    about = {"checkpoint": DEMO, "worker_id": "w", "lease_s": 20.0}
    plan = explained(db, STATEMENTS[which], about, is_generic=plan_of == "any values")
    assert plan.indexes == INDEXES | ({"jobs_queued_by_age"} if which == "oldest level" else set())
    assert plan.read_whole == set()
    assert not plan.sorts


@pytest.mark.parametrize("which", STATEMENTS)
def test_a_claim_planned_while_the_farm_was_new_walks_the_same_indexes(db: Database, which: str) -> None:
    """A connection may keep the plan that it made before the first job came."""
    about = {"checkpoint": DEMO, "worker_id": "w", "lease_s": 20.0}
    plan = explained(db, STATEMENTS[which], about, is_generic=True)
    assert plan.indexes == INDEXES | ({"jobs_queued_by_age"} if which == "oldest level" else set())
    assert not plan.sorts
