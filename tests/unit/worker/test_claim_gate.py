"""Who is let in to claim beside whom."""

from threading import Thread
from uuid import UUID

import pytest

from shared.jobs.lifecycle import Claim
from tests.support.factories import params
from worker.slots.claim_gate import Company


def claim(number: int, *, suspect: bool = False) -> Claim:
    return Claim(UUID(int=number), 1, params(), suspect=suspect)


class Slot(Thread):
    """Goes through the door; `got` is what it came back with."""

    def __init__(self, company: Company, what: Claim | None) -> None:
        super().__init__(daemon=True)
        self.company, self.what, self.got, self.asked = company, what, None, False
        self.start()

    def run(self) -> None:
        self.got = self.company.join(self._ask)  # type: ignore[assignment]

    def _ask(self) -> Claim | None:
        self.asked = True
        return self.what

    def is_waiting(self) -> bool:
        self.join(0.05)
        return self.is_alive()


def test_ordinary_jobs_run_side_by_side() -> None:
    company = Company()
    assert [company.join(lambda n=n: claim(n)) for n in range(3)] == [claim(n) for n in range(3)]  # type: ignore[misc]


def test_nothing_is_claimed_beside_a_suspect() -> None:
    company, suspect = Company(), claim(1, suspect=True)
    assert company.join(lambda: suspect) is suspect
    slot = Slot(company, claim(2))
    assert slot.is_waiting()
    assert not slot.asked
    company.leave(suspect)
    slot.join(30)
    assert slot.got == claim(2)


def test_a_suspect_is_alone_once_the_others_have_left() -> None:
    company, others, suspect = Company(), [claim(1), claim(2)], claim(3, suspect=True)
    for one in (*others, suspect):
        company.join(lambda one=one: one)  # type: ignore[misc]
    waiting = Thread(target=company.until_alone, args=(lambda: False,), daemon=True)
    waiting.start()
    company.leave(others[0])
    waiting.join(0.05)
    assert waiting.is_alive()
    company.leave(others[1])
    waiting.join(30)
    assert not waiting.is_alive()


def test_a_suspect_that_is_withdrawn_waits_no_longer() -> None:
    company, suspect = Company(), claim(2, suspect=True)
    company.join(lambda: claim(1))
    company.join(lambda: suspect)
    company.until_alone(lambda: True)
    company.leave(suspect)
    assert company.join(lambda: claim(3)) == claim(3)


def test_a_claim_that_fails_leaves_the_door_open() -> None:
    company = Company()
    assert company.join(lambda: None) is None
    with pytest.raises(ZeroDivisionError):
        company.join(lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    assert company.join(lambda: claim(1)) == claim(1)


def test_a_resting_worker_claims_when_it_may_again() -> None:
    company = Company()
    company.rest(True)
    slot = Slot(company, claim(1))
    assert slot.is_waiting()
    company.rest(False)
    slot.join(30)
    assert slot.got == claim(1)


def test_closing_sends_everyone_away() -> None:
    company = Company()
    company.rest(True)
    slot = Slot(company, claim(1))
    company.close()
    slot.join(30)
    assert slot.got is None
    assert not slot.asked
