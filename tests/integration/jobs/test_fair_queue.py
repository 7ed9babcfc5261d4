"""Who is next, on the real database: shares by weight, priorities, limits, and what a claim costs."""

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from api.auth import keys
from api.auth.keys import KeyLimits, NewKey
from shared.infra.db import Database
from shared.infra.tables import JobRow
from shared.jobs import fair_queue, lifecycle
from shared.jobs.submits import NewJob
from shared.vocabulary.forecast import Reason
from tests.support.factories import DEMO, params
from tests.support.fleet import hold
from tests.support.jobs import claim, submit, submit_many
from tests.support.plans import explained
from worker.fleet.waiting import waiting

# Of 2,000 keys, each at one of a hundred checkpoints, with some parked.
QUEUES = """
INSERT INTO keys (id, name, prefix, hash, scopes, max_running)
SELECT 'o' || n, 'k', n, '', '{}', 10 FROM generate_series(0, 1999) AS n;
INSERT INTO jobs (id, state, owner, checkpoint, params, max_attempts, steps_total, virtual_start, parked)
SELECT gen_random_uuid(), 'queued', 'o' || n % 2000, 'c' || n % 100, '{}', 1, 1, n, n % 4001 = 0
FROM generate_series(1, 20000) AS n;
"""
EMPTY = "TRUNCATE jobs, images, keys, shares, clocks, owner_shares, priority_clocks"


def key(db: Database, **limits: object) -> str:
    with db.transaction() as session:
        return keys.create(session, NewKey.model_validate({"name": "k", **limits}))[0].id


def served(db: Database, times: int, *, finish: bool = True, checkpoint: str = DEMO) -> list[JobRow]:
    """Claim jobs one after another, each finished before the next."""
    rows = []
    for _ in range(times):
        with db.transaction() as session:
            taken = lifecycle.claim_next(session, checkpoint, "w", lease_s=20)
            if taken is None:
                break
            if finish:
                assert lifecycle.succeed(session, taken, [])
            rows.append(lifecycle.get(session, taken.job_id))
    return rows


def served_in_turn(db: Database, times: int, names: Sequence[str]) -> list[JobRow]:
    """Claim from whichever of these checkpoints has the first job of all."""
    rows = []
    for _ in range(times):
        with db.transaction() as session:
            first = min(waiting(session, "w", names), key=lambda one: one.lag)
        rows += served(db, 1, checkpoint=first.checkpoint)
    return rows


def owners(rows: Sequence[JobRow]) -> list[str]:
    return [row.owner for row in rows]


def test_shares_are_as_the_weights(db: Database) -> None:
    """Three backlogged keys with jobs of different sizes get cost in proportion to their weights, to within 5 %."""
    weights = {key(db, weight=weight): weight for weight in (1.0, 2.0, 4.0)}
    for owner, steps in zip(weights, (4, 8, 3), strict=True):
        submit_many(db, 100, owner=owner, steps=steps)
    got: Counter[str] = Counter()
    for row in served(db, 120):
        got[row.owner] += row.cost
    total, of = sum(got.values()), sum(weights.values())
    for owner, weight in weights.items():
        assert got[owner] / total == pytest.approx(weight / of, rel=0.05)


def test_a_hundred_checkpoints_are_worth_no_more_than_one(db: Database) -> None:
    """Of two equal keys the one gets what the other does, to within 5 %, where claims go to the least virtual start of all."""
    wide = [NewJob(params=params(checkpoint=f"c{n % 100}", steps=4), max_attempts=1, owner="wide") for n in range(150)]
    one = [NewJob(params=params(checkpoint="one", steps=8), max_attempts=1, owner="one") for _ in range(75)]
    for jobs in (wide[:120], one[:60], one[60:], wide[120:]):
        lifecycle.submit_at_once(db, jobs)
    names = ["one", *(f"c{n}" for n in range(100))]
    got: Counter[str] = Counter()
    for row in served_in_turn(db, 60, names):
        got[row.owner] += row.cost
    assert got["wide"] == pytest.approx(got["one"], rel=0.05)


def test_what_one_has_had_elsewhere_counts(db: Database) -> None:
    submit_many(db, 3, owner="both", checkpoint="elsewhere")
    submit_many(db, 4, owner="both")
    submit_many(db, 3, owner="here")
    assert owners(served(db, 5)) == ["here", "here", "here", "both", "both"]


def test_who_comes_to_a_checkpoint_that_is_behind_starts_beside_those_who_wait_there(db: Database) -> None:
    submit_many(db, 30, owner="patient", checkpoint="slow")
    submit_many(db, 60, owner="quick")
    served(db, 60)
    served(db, 5, checkpoint="slow")
    submit_many(db, 10, owner="guest", checkpoint="slow")
    order = owners(served(db, 10, checkpoint="slow"))
    assert 4 <= order.count("guest") <= 6
    assert "guest" in order[:2]
    # Nor does it come before all of them again for every job that the fast checkpoint has done meanwhile.
    submit_many(db, 30, owner="quick")
    served(db, 30)
    submit_many(db, 10, owner="guest", checkpoint="slow")
    assert 4 <= owners(served(db, 10, checkpoint="slow")).count("guest") <= 6


def test_a_flood_at_one_checkpoint_drives_the_clock_past_nobodys_job(db: Database) -> None:
    """A worker stays with it while others wait elsewhere; who comes then is served beside those, not after them."""
    hold(db, "w", DEMO, "elsewhere", "another")
    submit_many(db, 60, owner="flood")
    submit_many(db, 20, owner="patient", checkpoint="elsewhere")
    served(db, 50)
    submit_many(db, 5, owner="visitor", checkpoint="another")
    order = owners(served_in_turn(db, 10, (DEMO, "elsewhere", "another")))
    assert Counter(order) == {"visitor": 5, "patient": 5}


def test_what_its_worker_cannot_load_holds_no_checkpoint_back(db: Database) -> None:
    hold(db, "w", DEMO)
    submit_many(db, 20, owner="patient", checkpoint="elsewhere")
    submit_many(db, 40, owner="steady")
    served(db, 21)
    submit_many(db, 10, owner="absent")
    assert 4 <= owners(served(db, 10)).count("absent") <= 6


def test_a_job_that_may_not_run_holds_its_checkpoint_back_for_nobody(db: Database) -> None:
    hold(db, "w", DEMO)
    submit(db, owner=key(db, paused=True))
    submit(db, owner="absent")
    submit_many(db, 30, owner="steady")
    served(db, 21)
    submit_many(db, 10, owner="absent")
    assert 4 <= owners(served(db, 10)).count("absent") <= 6


def test_turns_given_back_at_many_checkpoints_leave_no_gap(db: Database) -> None:
    with db.transaction() as session:
        orders = [NewJob(params=params(checkpoint=f"c{n}"), max_attempts=1, owner="fickle") for n in range(20)]
        for row in lifecycle.submit_all(session, [*orders, NewJob(params=params(), max_attempts=1, owner="fickle")]):
            lifecycle.cancel(session, row.id)
    submit_many(db, 10, owner="other")
    submit_many(db, 5, owner="fickle")
    assert owners(served(db, 4)).count("fickle") == 2


def test_a_deep_queue_delays_another_key_by_no_more_than_one_job(db: Database) -> None:
    submit_many(db, 400, owner="hog")
    served(db, 5)
    submit_many(db, 2, owner="guest")
    order = owners(served(db, 4))
    assert order[0] == "guest"
    assert order.count("guest") == 2


def test_who_comes_back_has_saved_nothing(db: Database) -> None:
    submit(db, owner="absent")
    submit_many(db, 30, owner="steady")
    served(db, 21)
    submit_many(db, 10, owner="absent")
    order = owners(served(db, 10))
    assert 4 <= order.count("absent") <= 6


def test_who_used_the_idle_farm_is_not_punished(db: Database) -> None:
    submit_many(db, 20, owner="busy")
    served(db, 20)
    submit_many(db, 10, owner="busy")
    submit_many(db, 10, owner="other")
    assert 4 <= owners(served(db, 10)).count("busy") <= 6


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 20), st.booleans()), min_size=1, max_size=25))
def test_whatever_comes_nobody_waits_behind_later_work(db: Database, acts: list[tuple[str, int, bool]]) -> None:
    """Claims follow virtual time: of one owner by age, and a newcomer never behind what others have yet to start."""
    with db.transaction() as session:
        session.execute(text(EMPTY))
    for owner, steps, claims in acts:
        submit(db, owner=owner, steps=steps)
        if claims:
            served(db, 1)
    rest = served(db, len(acts))
    starts = [row.virtual_start for row in rest]
    assert starts == sorted(starts)
    for name in "abc":
        ids = [row.id for row in rest if row.owner == name]
        assert ids == sorted(ids)
    assert claim(db) is None


def test_priority_goes_first_and_yet_the_lowest_moves(db: Database) -> None:
    low = submit(db, owner="a", priority=-5)
    middle = submit(db, owner="a")
    high = submit_many(db, 3, owner="b", priority=5)
    first = claim(db)
    assert first is not None
    assert first.job_id == high[0]
    patient = claim(db, oldest_level=True)
    assert patient is not None
    assert patient.job_id == low
    assert [row.id for row in served(db, 3)] == [*high[1:], middle]


def test_the_oldest_level_falls_back_when_it_cannot_run(db: Database) -> None:
    paused = key(db, paused=True)
    submit(db, owner=paused, priority=-5)
    able = submit(db, owner="a")
    taken = claim(db, oldest_level=True)
    assert taken is not None
    assert taken.job_id == able


def test_what_is_handed_back_is_next(db: Database) -> None:
    submit_many(db, 3, owner="a")
    taken = claim(db)
    assert taken is not None
    submit_many(db, 3, owner="b")
    with db.transaction() as session:
        assert lifecycle.release(session, taken)
    assert served(db, 1)[0].id == taken.job_id


def test_canceled_turns_cost_nothing(db: Database) -> None:
    for job_id in submit_many(db, 50, owner="fickle"):
        with db.transaction() as session:
            lifecycle.cancel(session, job_id)
    submit_many(db, 10, owner="other")
    submit_many(db, 5, owner="fickle")
    assert owners(served(db, 4)).count("fickle") == 2


def test_a_running_limit_holds_and_others_pass(db: Database) -> None:
    limited = key(db, max_running=2)
    submit_many(db, 20, owner=limited)
    submit_many(db, 3, owner="other")
    order = owners(served(db, 9, finish=False))
    assert order.count(limited) == 2
    assert order.count("other") == 3
    with db.transaction() as session:
        assert fair_queue.block_reason(session, limited) is Reason.LIMIT


def test_a_limited_key_gets_all_its_jobs_done_in_order(db: Database) -> None:
    limited = key(db, max_running=3)
    submitted = submit_many(db, 20, owner=limited)
    with db.transaction() as session:
        parked = session.scalar(text("SELECT count(*) FROM jobs WHERE parked"))
    assert parked == 17
    assert [row.id for row in served(db, 30)] == submitted


def test_urgent_work_of_a_limited_key_is_not_parked(db: Database) -> None:
    limited = key(db, max_running=1, max_priority=5)
    submit_many(db, 5, owner=limited)
    urgent = submit(db, owner=limited, priority=5)
    assert served(db, 1)[0].id == urgent


def test_parked_jobs_move_up_where_canceled_ones_left_room(db: Database, announced: str) -> None:
    assert announced
    limited = key(db, max_running=2)
    submitted = submit_many(db, 5, owner=limited)
    with db.transaction() as session:
        for job_id in submitted[:2]:
            lifecycle.cancel(session, job_id)
    assert claim(db) is None
    with db.transaction() as session:
        assert fair_queue.unpark(session) == 2
    assert [row.id for row in served(db, 9)] == submitted[2:]


def test_lifting_a_limit_frees_what_it_parked(db: Database, announced: str) -> None:
    assert announced
    limited = key(db, max_running=1)
    submit_many(db, 5, owner=limited)
    with db.transaction() as session:
        keys.change(session, limited, KeyLimits(max_running=None))
    with db.transaction() as session:
        assert fair_queue.unpark(session) == 4
    assert len(served(db, 9, finish=False)) == 5


def test_unparking_looks_at_parked_jobs_alone(db: Database) -> None:
    with db.transaction() as session:
        session.execute(text(QUEUES))
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE jobs, keys"))
    plan = explained(db, fair_queue.UNPARK, {})
    assert plan.indexes == {"jobs_parked", "jobs_queued_by_owner", "jobs_pkey", "keys_pkey"}
    assert plan.read_whole == set()
    assert not plan.sorts


def test_a_paused_keys_jobs_wait(db: Database) -> None:
    paused = key(db, paused=True)
    submitted = submit_many(db, 2, owner=paused)
    assert claim(db) is None
    with db.transaction() as session:
        assert fair_queue.block_reason(session, paused) is Reason.PAUSED
        assert fair_queue.block_reason(session, "anonymous") is None
    with db.transaction() as session:
        keys.change(session, paused, KeyLimits(paused=False))
    assert [row.id for row in served(db, 9)] == submitted
