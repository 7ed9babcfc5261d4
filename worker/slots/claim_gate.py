"""Admission of jobs to a worker's slots: who has lost workers gets less company, until one that kills them is alone.

A machine may be lost by itself, so the jobs of a first loss go back into full batches. From the second loss on a job is a
suspect, and each loss halves its company: group testing. A suspect is claimed like any other, then waits until few enough jobs
are beside it; meanwhile, and while it runs with as many as it may, nothing more is claimed. So it does not starve on a busy farm,
and no more than one suspect of a worker waits.
"""

from collections.abc import Callable
from threading import Condition, Lock

from shared.jobs.lifecycle import Claim

# How soon a wait notices what nobody tells it of.
LOOK_S = 0.25


def company(losses: int, slots: int) -> int:
    """Return how many jobs may run on a worker at once, itself included, while it runs one that has lost so many workers."""
    return -(-slots >> max(0, losses - 1))


class ClaimGate:
    """Lets a worker's `slots` claim jobs one at a time, and never more than those that run allow."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._claiming = Lock()
        self._changed = Condition()
        # Of each job inside, how many it allows.
        self._allowed: list[int] = []
        self._is_paused = False
        self._is_closed = False

    def acquire(self, claim: Callable[[], Claim | None]) -> Claim | None:
        """Claim a job once that is allowed. The slot that gets one must `release` it. None: no job, or the gate is closed."""
        with self._claiming:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or (self._has_room() and not self._is_paused))
                if self._is_closed:
                    return None
            claimed = claim()
            if claimed is not None:
                with self._changed:
                    self._allowed.append(self._company(claimed))
            return claimed

    def release(self, claim: Claim) -> None:
        """Leave the gate: the claimed job has ended."""
        with self._changed:
            self._allowed.remove(self._company(claim))
            self._changed.notify_all()

    def wait_for_company(self, claim: Claim, give_up: Callable[[], bool]) -> None:
        """Wait until no more jobs are inside than a claimed one allows, or until `give_up` returns True."""
        with self._changed:
            while len(self._allowed) > self._company(claim) and not give_up():
                self._changed.wait(LOOK_S)

    def pause(self, is_paused: bool) -> None:
        """Claim nothing for now, or claim again. Slots that hear a doorbell wait meanwhile."""
        with self._changed:
            self._is_paused = is_paused
            self._changed.notify_all()

    def close(self) -> None:
        """Claim nothing ever again; running jobs may finish."""
        # In a signal handler, too: the main thread takes part in nothing here that would hold the lock.
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _has_room(self) -> bool:
        return len(self._allowed) < min(self._allowed, default=self._slots)

    def _company(self, claim: Claim) -> int:
        return company(claim.losses, self._slots)
