"""Admission of jobs to a worker's slots. A suspect, a job that was running when another worker was lost, runs alone.

It is claimed like any other, then waits until the jobs beside it have ended; meanwhile and while it runs nothing more is
claimed. So it neither starves on a busy farm nor is there ever more than one suspect on a worker.
"""

from collections.abc import Callable
from threading import Condition, Lock

from shared.jobs.lifecycle import Claim

# How soon a wait notices what nobody tells it of.
LOOK_S = 0.25


class ClaimGate:
    """Lets slots claim jobs one at a time, and none beside a suspect."""

    def __init__(self) -> None:
        self._claiming = Lock()
        self._changed = Condition()
        self._members = 0
        self._has_suspect = False
        self._is_paused = False
        self._is_closed = False

    def acquire(self, claim: Callable[[], Claim | None]) -> Claim | None:
        """Claim a job once that is allowed. The slot that gets one must `release` it. None: no job, or the gate is closed."""
        with self._claiming:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or not (self._has_suspect or self._is_paused))
                if self._is_closed:
                    return None
            claimed = claim()
            if claimed is not None:
                with self._changed:
                    self._members += 1
                    self._has_suspect = claimed.suspect
            return claimed

    def release(self, claim: Claim) -> None:
        """Leave the gate: the claimed job has ended."""
        with self._changed:
            self._members -= 1
            if claim.suspect:
                self._has_suspect = False
            self._changed.notify_all()

    def wait_until_alone(self, give_up: Callable[[], bool]) -> None:
        """Wait until all other jobs have ended, or until `give_up` returns True."""
        with self._changed:
            while self._members > 1 and not give_up():
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
