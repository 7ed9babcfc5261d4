"""Who is let in to claim beside whom."""

from threading import Thread
from uuid import UUID

import pytest

from shared.jobs.lifecycle import Claim
from tests.support.factories import params
from worker.slots.claim_gate import ClaimGate


def claim(number: int, *, suspect: bool = False) -> Claim:
    return Claim(UUID(int=number), 1, params(), suspect=suspect)


class Slot(Thread):
    """Goes through the door; `got` is what it came back with."""

    def __init__(self, gate: ClaimGate, what: Claim | None) -> None:
        super().__init__(daemon=True)
        self.gate, self.what, self.got, self.asked = gate, what, None, False
        self.start()

    def run(self) -> None:
        self.got = self.gate.acquire(self._ask)  # type: ignore[assignment]

    def _ask(self) -> Claim | None:
        self.asked = True
        return self.what

    def is_waiting(self) -> bool:
        self.join(0.05)
        return self.is_alive()


def test_ordinary_jobs_run_side_by_side() -> None:
    gate = ClaimGate()
    assert [gate.acquire(lambda n=n: claim(n)) for n in range(3)] == [claim(n) for n in range(3)]  # type: ignore[misc]


def test_nothing_is_claimed_beside_a_suspect() -> None:
    gate, suspect = ClaimGate(), claim(1, suspect=True)
    assert gate.acquire(lambda: suspect) is suspect
    slot = Slot(gate, claim(2))
    assert slot.is_waiting()
    assert not slot.asked
    gate.release(suspect)
    slot.join(30)
    assert slot.got == claim(2)


def test_a_suspect_is_alone_once_the_others_have_left() -> None:
    gate, others, suspect = ClaimGate(), [claim(1), claim(2)], claim(3, suspect=True)
    for one in (*others, suspect):
        gate.acquire(lambda one=one: one)  # type: ignore[misc]
    waiting = Thread(target=gate.wait_until_alone, args=(lambda: False,), daemon=True)
    waiting.start()
    gate.release(others[0])
    waiting.join(0.05)
    assert waiting.is_alive()
    gate.release(others[1])
    waiting.join(30)
    assert not waiting.is_alive()


def test_a_suspect_that_is_withdrawn_waits_no_longer() -> None:
    gate, suspect = ClaimGate(), claim(2, suspect=True)
    gate.acquire(lambda: claim(1))
    gate.acquire(lambda: suspect)
    gate.wait_until_alone(lambda: True)
    gate.release(suspect)
    assert gate.acquire(lambda: claim(3)) == claim(3)


def test_a_claim_that_fails_leaves_the_door_open() -> None:
    gate = ClaimGate()
    assert gate.acquire(lambda: None) is None
    with pytest.raises(ZeroDivisionError):
        gate.acquire(lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    assert gate.acquire(lambda: claim(1)) == claim(1)


def test_a_resting_worker_claims_when_it_may_again() -> None:
    gate = ClaimGate()
    gate.pause(True)
    slot = Slot(gate, claim(1))
    assert slot.is_waiting()
    gate.pause(False)
    slot.join(30)
    assert slot.got == claim(1)


def test_closing_sends_everyone_away() -> None:
    gate = ClaimGate()
    gate.pause(True)
    slot = Slot(gate, claim(1))
    gate.close()
    slot.join(30)
    assert slot.got is None
    assert not slot.asked
