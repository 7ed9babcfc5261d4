"""How many workers are wanted: enough, and never more than the bounds."""

from hypothesis import example, given
from hypothesis import strategies as st

from api.farm.scaling import Goal, backlog_gpu_s, desired_workers

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
