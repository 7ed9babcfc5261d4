"""Short scenes of a fleet that shares checkpoints. Simulated time is deterministic, so that it may be asserted."""

import dataclasses

import pytest

from tests.simulate.residency import report
from tests.simulate.residency.__main__ import bad_day, fairness, flood, load
from tests.simulate.residency.figures import figures
from tests.simulate.residency.play import Play
from tests.simulate.residency.policies import Homes, Policy, Pressure
from tests.simulate.residency.scene import Scene


def short(scene: Scene, length_s: float, **changes: float) -> Scene:
    return dataclasses.replace(scene, length_s=length_s, **changes)  # type: ignore[arg-type]


def play(scene: Scene, policy: Policy, seed: int = 1) -> dict[str, float]:
    return figures(Play(scene, policy, seed).run())


@pytest.fixture(scope="module")
def light() -> dict[str, float]:
    return play(short(load(0.3), 50.0), Homes())


def test_homes_keep_waits_short_where_the_longest_queue_does_not(light: dict[str, float]) -> None:
    assert light["wait_p95_s"] <= 3.0
    assert light["rendered_of_asked"] > 0.9
    assert play(short(load(0.3), 50.0), Pressure())["wait_p95_s"] > 2 * light["wait_p95_s"]


def test_checkpoints_in_spare_vram_hardly_wait_and_hardly_cost() -> None:
    near = play(short(load(0.3, near_s=0.003), 45.0), Homes())
    assert near["wait_p95_s"] <= 1.0
    assert near["swap_percent"] <= 4.0


def test_what_a_dead_worker_had_is_served_elsewhere() -> None:
    scene = short(bad_day(), 75.0, warm_up_s=10.0)
    ran = Play(dataclasses.replace(scene, deaths_s=[20.0, 25.0]), Homes(), 1).run()
    assert ran.moved_s
    # What it ran is missed when its lease is; all else sooner.
    assert max(ran.moved_s) <= 25.0
    assert not ran.ended_twice


def test_a_flood_over_a_hundred_checkpoints_holds_up_no_visitor() -> None:
    ran = Play(short(flood(), 45.0, warm_up_s=10.0), Homes(), 1).run()
    fair = fairness(ran)
    assert float(str(fair["visitor_max_s"])) <= 5.0


def test_the_same_seed_gives_the_same_figures(light: dict[str, float]) -> None:
    assert play(short(load(0.3), 50.0), Homes()) == light


def test_the_report_shows_every_row(light: dict[str, float]) -> None:
    assert report.plot([light, light]).count("<rect") == 3
    assert report.markdown([light]).count("\n") == 2
