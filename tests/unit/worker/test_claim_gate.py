"""Who is let in to claim beside whom, and what a poison job costs its neighbours and its workers."""

from collections import Counter
from math import ceil, log2
from threading import Thread
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.jobs.lifecycle import Claim
from tests.support.factories import params
from worker.slots.claim_gate import ClaimGate, company

SLOTS, LONE = 4, 9


def claim(number: int, *, losses: int = 0) -> Claim:
    return Claim(UUID(int=number), 1, params(), losses=losses)


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
    gate = ClaimGate(SLOTS)
    assert [gate.acquire(lambda n=n: claim(n)) for n in range(3)] == [claim(n) for n in range(3)]  # type: ignore[misc]


def test_nothing_is_claimed_beside_a_suspect() -> None:
    gate, suspect = ClaimGate(SLOTS), claim(1, losses=LONE)
    assert gate.acquire(lambda: suspect) is suspect
    slot = Slot(gate, claim(2))
    assert slot.is_waiting()
    assert not slot.asked
    gate.release(suspect)
    slot.join(30)
    assert slot.got == claim(2)


def test_jobs_of_one_loss_run_side_by_side() -> None:
    gate = ClaimGate(SLOTS)
    assert all(gate.acquire(lambda n=n: claim(n, losses=1)) for n in range(SLOTS))  # type: ignore[misc]


def test_a_suspect_waits_for_its_company_and_lets_no_more_in() -> None:
    gate, others, suspect = ClaimGate(SLOTS), [claim(1), claim(2)], claim(3, losses=2)
    for one in (*others, suspect):
        gate.acquire(lambda one=one: one)  # type: ignore[misc]
    waiting = Thread(target=gate.wait_for_company, args=(suspect, lambda: False), daemon=True)
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    gate.release(others[0])
    waiting.join(30)
    assert not waiting.is_alive()
    slot = Slot(gate, claim(4))
    assert slot.is_waiting()
    gate.release(others[1])
    slot.join(30)
    assert slot.got == claim(4)


def test_a_lone_suspect_starts_once_all_others_have_left() -> None:
    gate, others, suspect = ClaimGate(SLOTS), [claim(1), claim(2)], claim(3, losses=LONE)
    for one in (*others, suspect):
        gate.acquire(lambda one=one: one)  # type: ignore[misc]
    waiting = Thread(target=gate.wait_for_company, args=(suspect, lambda: False), daemon=True)
    waiting.start()
    gate.release(others[0])
    waiting.join(0.05)
    assert waiting.is_alive()
    gate.release(others[1])
    waiting.join(30)
    assert not waiting.is_alive()


def test_a_suspect_that_is_withdrawn_waits_no_longer() -> None:
    gate, suspect = ClaimGate(SLOTS), claim(2, losses=LONE)
    gate.acquire(lambda: claim(1))
    gate.acquire(lambda: suspect)
    gate.wait_for_company(suspect, lambda: True)
    gate.release(suspect)
    assert gate.acquire(lambda: claim(3)) == claim(3)


def test_a_claim_that_fails_leaves_the_door_open() -> None:
    gate = ClaimGate(SLOTS)
    assert gate.acquire(lambda: None) is None
    with pytest.raises(ZeroDivisionError):
        gate.acquire(lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    assert gate.acquire(lambda: claim(1)) == claim(1)


def test_a_resting_worker_claims_when_it_may_again() -> None:
    gate = ClaimGate(SLOTS)
    gate.pause(True)
    slot = Slot(gate, claim(1))
    assert slot.is_waiting()
    gate.pause(False)
    slot.join(30)
    assert slot.got == claim(1)


def test_closing_sends_everyone_away() -> None:
    gate = ClaimGate(SLOTS)
    gate.pause(True)
    slot = Slot(gate, claim(1))
    gate.close()
    slot.join(30)
    assert slot.got is None
    assert not slot.asked


@pytest.mark.parametrize(
    ("slots", "companies"), [(16, [16, 16, 8, 4, 2, 1, 1]), (5, [5, 5, 3, 2, 1, 1]), (1, [1, 1, 1])]
)
def test_suspicion_begins_with_a_second_loss_and_narrows_by_halves(slots: int, companies: list[int]) -> None:
    assert [company(losses, slots) for losses in range(len(companies))] == companies


class Ward:
    """Jobs on one worker after another, as gate and courier treat them: whoever runs beside poison is lost with its worker."""

    def __init__(self, jobs: int, slots: int, max_attempts: int, poison: set[int]) -> None:
        self.slots, self.max_attempts, self.poison = slots, max_attempts, poison
        self.queue = [*range(jobs)]
        self.losses: Counter[int] = Counter()
        self.faults: Counter[int] = Counter()
        self.failed: set[int] = set()
        self.turns = 0

    def company(self, job: int) -> int:
        return company(self.losses[job], self.slots)

    def run(self) -> "Ward":
        while self.queue:
            self.turns += 1
            together = self.let_in()
            if self.poison & set(together):
                self.lose(together)
            else:
                self.queue = [job for job in self.queue if job not in together]
        return self

    def let_in(self) -> list[int]:
        """Return who runs next, in the queue's order; a suspect that allows fewer than are there starts after them."""
        together: list[int] = []
        for job in self.queue:
            if len(together) >= min([self.company(job), *map(self.company, together)]):
                break
            together.append(job)
        return together

    def lose(self, together: list[int]) -> None:
        self.losses.update(together)
        if len(together) == 1:
            self.faults.update(together)
        spent = {job for job in together if self.faults[job] >= self.max_attempts}
        self.failed |= spent
        self.queue = [job for job in self.queue if job not in spent]


class Lonely(Ward):
    """The simplest rule: whoever was there when a worker was lost runs alone from then on."""

    def company(self, job: int) -> int:
        return 1 if self.losses[job] else self.slots


@given(st.integers(1, 33), st.integers(1, 3), st.integers(1, 60), st.data())
def test_poison_fails_alone_and_costs_the_others_no_fault(
    slots: int, max_attempts: int, jobs: int, data: st.DataObject
) -> None:
    poison = data.draw(st.sets(st.integers(0, jobs - 1), max_size=4))
    ward = Ward(jobs, slots, max_attempts, poison).run()
    in_company = 1 + ceil(log2(slots))
    assert ward.failed == poison
    assert set(ward.faults) == poison
    assert all(ward.losses[job] <= in_company for job in range(jobs) if job not in poison)
    assert all(ward.losses[job] <= in_company + max_attempts for job in poison)


@pytest.mark.parametrize("place", range(16))
def test_a_poison_job_holds_up_fifteen_good_ones_for_less_than_if_each_ran_alone(place: int) -> None:
    halved, lonely = (kind(16, 16, 3, {place}).run() for kind in (Ward, Lonely))
    assert halved.failed == lonely.failed == {place}
    assert halved.turns < lonely.turns


def test_machines_that_are_lost_by_themselves_leave_full_batches() -> None:
    """Each of four machines with sixteen jobs is lost once: nothing runs alone, and nothing more often than needed."""
    ward = Ward(64, 16, 3, set())
    for first in range(0, 64, 16):
        ward.lose([*range(first, first + 16)])
    assert ward.run().turns == 4
