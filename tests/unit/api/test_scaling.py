"""How many workers are wanted: enough, and never more than the bounds."""

from dataclasses import dataclass

from hypothesis import example, given
from hypothesis import strategies as st

from api.farm.scaling import Fleet, Goal, backlog_gpu_s, desired_workers, fleet, fleet_backlog
from shared.vocabulary.forecast import Load

BACKLOGS = st.floats(0, 1e15)
SPEEDS = st.floats(1, 1e9)


@example(backlog=2.5583e-320, speed=1.0, target_s=10356.0, workers=0)
@given(backlog=BACKLOGS, speed=SPEEDS, target_s=st.floats(0.1, 1e5), workers=st.integers(0, 1000))
def test_as_many_as_wanted_finish_within_the_target_and_one_fewer_would_not(
    backlog: float, speed: float, target_s: float, workers: int
) -> None:
    wanted = desired_workers(backlog, speed, workers=workers, goal=Goal(target_s, maximum=10**30))
    gpu_s = backlog / speed
    assert gpu_s <= wanted * target_s * (1 + 1e-9)
    assert wanted == 0 or gpu_s > (wanted - 1) * target_s * (1 - 1e-9)


@given(
    backlog=BACKLOGS,
    speed=st.none() | SPEEDS,
    workers=st.integers(0, 1000),
    low=st.integers(0, 5),
    more=st.integers(1, 50),
)
def test_the_bounds_hold_whatever_comes(backlog: float, speed: float | None, workers: int, low: int, more: int) -> None:
    assert low <= desired_workers(backlog, speed, workers=workers, goal=Goal(60, low, low + more)) <= low + more


def test_nothing_to_do_wants_nobody_whatever_is_known_of_speeds() -> None:
    assert desired_workers(0, 5.0, workers=3, goal=Goal(60)) == 0
    assert desired_workers(0, None, workers=3, goal=Goal(60)) == 0


def test_work_that_nobody_has_measured_wants_one_worker_and_keeps_those_there_are() -> None:
    assert backlog_gpu_s(1000, None) is None
    assert desired_workers(1000, None, workers=0, goal=Goal(60)) == 1
    assert desired_workers(1000, None, workers=2, goal=Goal(60)) == 2


@dataclass(frozen=True)
class Worker:
    speed: float | None = None
    unfit: str | None = None
    draining_at: object = None


def test_a_fleet_is_who_takes_jobs_and_as_fast_as_those_that_have_worked() -> None:
    taken_out = [Worker(90.0, unfit="wrong"), Worker(90.0, draining_at="now")]
    assert fleet([Worker(10.0), Worker(20.0), Worker(), *taken_out]) == Fleet(3, 15.0)
    assert fleet(taken_out) == Fleet(0, None)


def test_work_that_no_worker_can_load_wants_one_and_no_more() -> None:
    servable = [Load("a", queued_cost=500, workers=2), Load("b", running_cost_left=100.0, workers=1)]
    stranded = Load("c", queued_cost=10**12)
    assert fleet_backlog(servable) == fleet_backlog([*servable, stranded]) == 600
    assert desired_workers(fleet_backlog([stranded]), 10.0, workers=3, goal=Goal(60)) == 1
    assert desired_workers(fleet_backlog([stranded]), None, workers=0, goal=Goal(60)) == 1
    assert fleet_backlog([Load("d", workers=4)]) == 0
