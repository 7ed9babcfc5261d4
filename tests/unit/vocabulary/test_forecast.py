"""Forecasts against a small simulation of slots that share a worker's speed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.vocabulary.forecast import Ahead, Load, Reason, forecast_queued, forecast_running, turn_s

COST = 100


def load(**changes: object) -> Load:
    return Load(checkpoint="c", **{"workers": 1, "slots": 4, "speed": 10.0, **changes})  # type: ignore[arg-type]


def test_a_free_slot_starts_a_job_at_once() -> None:
    found = forecast_queued(load(running=3, running_cost=3 * COST), Ahead(0, 0), COST)
    assert (found.position, found.reason, found.start_s) == (0, Reason.TURN, 0.0)
    assert found.finish_s == pytest.approx(4 * COST / 10)


def test_a_lone_job_has_the_worker_to_itself() -> None:
    assert forecast_queued(load(), Ahead(0, 0), COST).finish_s == pytest.approx(COST / 10)
    assert forecast_running(load(running=1), COST / 2).finish_s == pytest.approx(COST / 2 / 10)


def test_without_a_worker_nobody_can_know_but_the_reason() -> None:
    found = forecast_queued(Load("c"), Ahead(7, 700), COST)
    assert (found.position, found.reason, found.start_s, found.finish_s) == (7, Reason.NO_WORKER, None, None)


def test_workers_that_are_draining_are_told_from_none() -> None:
    found = forecast_queued(Load("c", draining=1), Ahead(0, 0), COST, due_in_s=1.0)
    assert (found.reason, found.start_s) == (Reason.DRAINING, None)


def test_a_job_that_failed_waits_to_be_tried_again() -> None:
    found = forecast_queued(load(), Ahead(0, 0), COST, due_in_s=7.0)
    assert (found.reason, found.start_s) == (Reason.RETRY, 7.0)
    assert found.finish_s == pytest.approx(7.0 + COST / 10)
    behind = forecast_queued(load(), Ahead(40, 40 * COST), COST, due_in_s=7.0)
    assert behind.start_s is not None
    assert behind.start_s > 7.0
    assert forecast_queued(load(), Ahead(0, 0), COST, held=Reason.PAUSED, due_in_s=7.0).reason is Reason.PAUSED


def test_what_was_not_counted_to_the_end_is_not_predicted() -> None:
    assert forecast_queued(load(), Ahead(10_000, 10**6, is_all=False), COST).start_s is None


def test_a_checkpoint_that_nobody_has_open_waits_until_a_worker_turns_to_it() -> None:
    """Then one of the workers serves it alone, with its own speed and slots."""
    three = {"workers": 3, "slots": 12, "speed": 30.0, "is_open": False, "share": 1 / 3}
    loading = forecast_queued(load(**three, loading=1, turn_s=0.5), Ahead(0, 0), COST)
    assert (loading.reason, loading.start_s) == (Reason.LOADING, 0.5)
    assert loading.finish_s == pytest.approx(0.5 + COST / 10)
    waiting = forecast_queued(load(**three, turn_s=2.5), Ahead(8, 8 * COST), COST)
    assert waiting.reason is Reason.SWAP
    assert waiting.start_s == pytest.approx(2.5 + (8 + 1 - 4) * COST / 10)
    assert forecast_queued(load(**three, turn_s=2.5), Ahead(0, 0), COST, held=Reason.PAUSED).reason is Reason.PAUSED


def test_a_second_checkpoint_puts_off_the_end_by_its_price() -> None:
    plain, dear = (forecast_queued(load(second_s=price), Ahead(0, 0), COST) for price in (0.0, 3.0))
    assert plain.finish_s is not None
    assert (dear.start_s, dear.finish_s) == (plain.start_s, plain.finish_s + 3.0)


def test_a_worker_shares_itself_among_the_checkpoints_that_it_has_open() -> None:
    halved = load(share=0.5, running=1)
    assert forecast_running(halved, COST).finish_s == pytest.approx(COST / 5)
    assert halved.open_slots == 2


@given(price_s=st.floats(0, 100), waited_s=st.floats(0, 2000))
def test_a_worker_turns_after_a_bounded_wait(price_s: float, waited_s: float) -> None:
    busy = turn_s(price_s, is_loading=False, is_idle=False, waited_s=waited_s)
    assert price_s <= busy <= price_s + max(1.0, 10 * price_s)
    assert busy == price_s or busy + waited_s == pytest.approx(price_s + max(1.0, 10 * price_s))
    for at_once in ({"is_loading": True, "is_idle": False}, {"is_loading": False, "is_idle": True}):
        assert turn_s(price_s, waited_s=waited_s, **at_once) == price_s


@given(jobs=st.integers(0, 60), running=st.integers(0, 4), slots=st.integers(1, 8), speed=st.floats(1, 1000))
def test_the_end_lies_where_a_simulation_ends(jobs: int, running: int, slots: int, speed: float) -> None:
    running = min(running, slots)
    found = forecast_queued(
        load(slots=slots, speed=speed, running=running, running_cost=running * COST), Ahead(jobs, jobs * COST), COST
    )
    end_s = simulated(running, jobs, slots, speed)
    assert found.finish_s is not None
    # What the running jobs have already done is not known: at most one job's whole share of time.
    assert abs(found.finish_s - end_s) <= slots * COST / speed + 1e-6


def simulated(running: int, jobs: int, slots: int, speed: float) -> float:
    """Share the speed among the jobs in slots until the last one queued is done."""
    left = [COST * (place + 1) / max(1, running) for place in range(running)] + [float(COST)] * (jobs + 1)
    now_s = 0.0
    while left:
        active = left[:slots]
        step = min(active)
        now_s += step * len(active) / speed
        left = [cost - step for cost in active if cost - step > 1e-9] + left[slots:]
    return now_s
