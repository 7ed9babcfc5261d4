"""How a gpu worker comes to leave: by a real SIGTERM, which these tests catch."""

import signal
from collections.abc import Iterator

import pytest

from worker.slots.claim_gate import ClaimGate
from worker.slots.departure import Departure


@pytest.fixture
def terminated() -> Iterator[list[int]]:
    """The signals that have arrived."""
    arrived: list[int] = []
    former = signal.signal(signal.SIGTERM, lambda number, _frame: arrived.append(number))
    yield arrived
    signal.signal(signal.SIGTERM, former)


@pytest.fixture
def departure() -> Departure:
    gate = ClaimGate(16)
    gate.pause(True)
    return Departure(gate)


def is_claiming(departure: Departure) -> bool:
    """Whether a slot would claim now."""
    gate = departure._claim_gate
    return not (gate._is_paused or gate._is_closed)


def test_a_worker_leaves_once_however_often_it_is_asked(departure: Departure, terminated: list[int]) -> None:
    departure.leave()
    departure.leave()
    assert terminated == [signal.SIGTERM]


def test_a_worker_that_starts_while_its_drain_is_asked_for_stays_idle(
    departure: Departure, terminated: list[int]
) -> None:
    departure.heed(True)
    assert (is_claiming(departure), terminated) == (False, [])


def test_a_worker_that_has_worked_leaves_when_the_fleet_asks(departure: Departure, terminated: list[int]) -> None:
    departure.heed(False)
    assert (is_claiming(departure), terminated) == (True, [])
    departure.heed(True)
    departure.heed(True)
    assert terminated == [signal.SIGTERM]


def test_a_drain_that_is_taken_back_before_the_worker_began_lets_it_work(
    departure: Departure, terminated: list[int]
) -> None:
    departure.heed(True)
    departure.heed(False)
    assert (is_claiming(departure), terminated) == (True, [])


def test_a_worker_that_drains_or_is_unfit_claims_nothing_more(departure: Departure) -> None:
    departure.heed(False)
    departure.condemn("flipped")
    assert (departure.is_unfit, departure.is_draining, is_claiming(departure)) == (True, False, False)
    departure.begin_drain()
    departure.heed(False)
    assert (departure.is_unfit, departure.is_draining, is_claiming(departure)) == (True, True, False)
