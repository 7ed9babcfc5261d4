"""Who looks for jobs without a doorbell, and when."""

from collections.abc import Callable
from dataclasses import dataclass, field

from shared.errors import DatabaseUnavailable
from worker.slots.lookout import Lookout


@dataclass
class Worker:
    """A worker whose slots do what they are told only when a test says so."""

    unrung: int = 3
    jobs: int = 0
    error: Exception | None = None
    given: list[Callable[[], None]] = field(default_factory=list)
    found: int = 0
    is_side_by_side: bool = False  # whether other slots do what they are given while a job runs
    depth: int = 0
    most: int = 0

    def run(self, act: Callable[[], None]) -> None:
        self.given.append(act)

    def answer(self, claimed: Callable[[], None]) -> bool:
        if self.error:
            raise self.error
        if not self.jobs:
            return False
        self.jobs -= 1
        claimed()
        self.found += 1
        self.depth += 1
        self.most = max(self.most, self.depth)
        while self.is_side_by_side and self.given:
            self.turn()
        self.depth -= 1
        return True

    def turn(self) -> None:
        """Have a slot do the next thing that it was given."""
        self.given.pop(0)()


def lookout(worker: Worker) -> Lookout:
    return Lookout(worker, worker.answer, every_s=3600)


def test_one_idle_slot_looks_once() -> None:
    worker = Worker()
    looking = lookout(worker)
    for _ in range(3):
        looking.look()
    assert len(worker.given) == 1
    worker.turn()
    assert worker.given == []
    looking.look()
    assert len(worker.given) == 1


def test_looks_that_find_jobs_follow_each_other_until_none_is_left() -> None:
    worker = Worker(jobs=5)
    lookout(worker).look()
    while worker.given:
        worker.turn()
    assert (worker.jobs, worker.found) == (0, 5)


def test_no_more_jobs_run_than_there_are_slots() -> None:
    worker = Worker(unrung=2, jobs=9, is_side_by_side=True)
    lookout(worker).look()
    while worker.given:
        worker.turn()
    assert (worker.jobs, worker.most) == (0, 2)


def test_slots_that_were_rung_for_do_not_look() -> None:
    worker = Worker(unrung=0, jobs=1)
    lookout(worker).look()
    assert worker.given == []


def test_doorbells_that_ring_again_end_the_looks() -> None:
    worker = Worker(unrung=1, jobs=5)
    lookout(worker).look()
    worker.unrung = 0
    worker.turn()
    assert (worker.given, worker.jobs) == ([], 4)


def test_a_look_that_fails_is_not_the_last() -> None:
    worker = Worker(error=DatabaseUnavailable())
    looking = lookout(worker)
    for _ in range(2):
        looking.look()
        worker.turn()
    worker.error = ZeroDivisionError()
    looking.look()
    worker.turn()
    worker.error, worker.jobs = None, 1
    looking.look()
    worker.turn()
    assert worker.found == 1


def test_after_the_end_nobody_looks() -> None:
    worker = Worker(jobs=2)
    looking = lookout(worker)
    looking.look()
    looking.start()
    looking.stop()
    worker.turn()
    looking.look()
    assert (worker.given, worker.jobs) == ([], 1)
