"""Short simulated days, and the simulated order against the database's."""

from random import Random

import pytest

from api.auth import keys
from api.auth.keys import NewKey
from api.farm.scaling import Goal
from shared.infra.db import Database
from shared.jobs import lifecycle
from tests.simulate import report
from tests.simulate.__main__ import run
from tests.simulate.day import Job, arrivals
from tests.simulate.farm import Plan
from tests.simulate.turns import FarmClocks, Turns
from tests.support.factories import DEMO, params
from tests.support.fleet import hold

GOAL = Goal(target_wait_s=60, minimum=1, maximum=40)


@pytest.fixture(scope="module")
def day() -> list[Job]:
    return arrivals(Random(4), hours=3, per_second=0.3)


@pytest.mark.parametrize("fixed", [None, 4, 40])
def test_no_job_is_lost_and_none_ends_twice(day: list[Job], fixed: int | None) -> None:
    outcome = run(Plan("p", GOAL, fixed=fixed, spot=1.0), day, seed=2)
    assert len(outcome.jobs) == len(day) > 1000
    assert outcome.interruptions > 0
    assert outcome.lost == 0
    # What was paid for either worked or idled, and whatever was repeated was worked.
    assert 0 <= outcome.repeated_s < outcome.busy_s <= outcome.paid_s


def test_scaling_idles_less_than_the_largest_fleet_and_waits_less_than_a_small_one(day: list[Job]) -> None:
    scaled, small, large = (report.figures(run(Plan("p", GOAL, fixed=fixed), day, seed=2)) for fixed in (None, 4, 40))
    assert scaled["idle_gpu_hours"] < large["idle_gpu_hours"] / 2
    assert scaled["wait_p95_s"] < small["wait_p95_s"] / 2
    assert scaled["machines_most"] <= GOAL.maximum


def test_the_same_seed_gives_the_same_day(day: list[Job]) -> None:
    first, second = (report.figures(run(Plan("p", GOAL), day, seed=9)) for _ in range(2))
    assert first == second


def test_the_plot_is_a_picture_of_every_fleet(day: list[Job]) -> None:
    outcomes = [run(Plan(name, GOAL, fixed=fixed), day, seed=1) for name, fixed in (("a", None), ("b", 5))]
    assert report.plot(outcomes).count("<polyline") == 4
    assert "lost jobs" in report.table([report.figures(outcome) for outcome in outcomes])


def test_claims_go_in_the_databases_order(db: Database) -> None:
    """The same submits and claims, by turns, give the same jobs in memory and in Postgres; one checkpoint falls behind."""
    random, farm, by_row, claims = Random(11), FarmClocks(), {}, 0
    turns = {name: Turns(farm) for name in (DEMO, "another", "rare")}
    weights = {_key(db, weight): weight for weight in (1.0, 3.0)}
    hold(db, "w", *turns)
    for number in range(200):
        name = random.choice(list(turns) if random.random() < 0.5 else [DEMO])
        if random.random() < 0.6:
            owner, priority, steps = random.choice(list(weights)), random.choice((-5, 0, 5)), random.randint(2, 9)
            with db.transaction() as session:
                about = params(steps=steps, checkpoint=name)
                row = lifecycle.submit(session, about, max_attempts=1, owner=owner, priority=priority)
                job = Job(number, owner, weights[owner], priority, row.cost, 0.0)
                turns[name].submit(job)
                by_row[row.id] = number
            assert row.virtual_start == pytest.approx(job.virtual_start)
        else:
            with db.transaction() as session:
                claim = lifecycle.claim_next(session, name, "w", lease_s=60, oldest_level=number % 3 == 0)
            ours = turns[name].claim(oldest_level=number % 3 == 0)
            assert (ours.id if ours else None) == (by_row[claim.job_id] if claim else None)
            claims += claim is not None
    assert claims > 40


def _key(db: Database, weight: float) -> str:
    with db.transaction() as session:
        return keys.create(session, NewKey.model_validate({"name": "k", "weight": weight}))[0].id
