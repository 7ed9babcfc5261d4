"""Looks for jobs that no doorbell told of: with Redis away or full, work goes on, if it begins later.

A look is what a doorbell leads to, in a slot that nobody has rung for. While looks find jobs they follow each other at once, up
to all slots; while none does, one slot of a worker looks now and then.
"""

from collections.abc import Callable
from threading import Lock
from typing import Protocol

import structlog

from shared.errors import FarmError
from worker.periodic import Periodic

EVERY_S = 30.0

log = structlog.get_logger(__name__)


class Slots(Protocol):
    """The slots of a worker."""

    @property
    def unrung(self) -> int:
        """How many have no doorbell to answer."""

    def run(self, act: Callable[[], None]) -> None:
        """Have the next free slot do something."""


class Answer(Protocol):
    """Answers as to a doorbell, and returns whether there was a job."""

    def __call__(self, claimed: Callable[[], None]) -> bool:
        """Call `claimed` once a job is claimed, and return when it has ended."""


class Lookout:
    """Has slots of one worker look for jobs. Doorbells go first."""

    def __init__(self, slots: Slots, answer: Answer, *, every_s: float) -> None:
        self._slots = slots
        self._answer = answer
        self._lock = Lock()
        self._has_closed = False
        self._running = 0  # jobs that were found by looks
        self._is_looking = False
        self._periodic = Periodic("lookout", self.look, every_s=every_s, apart=True)

    def start(self) -> None:
        self._periodic.start()

    def stop(self) -> None:
        """Look no more. Jobs that were found run on."""
        with self._lock:
            self._has_closed = True
        self._periodic.stop()

    def look(self) -> None:
        """Have a slot look, if one has nothing to do and none looks already."""
        with self._lock:
            if self._has_closed or self._is_looking or self._slots.unrung <= self._running:
                return
            self._is_looking = True
        self._slots.run(self._look)

    def _look(self) -> None:
        has_found = False

        def claimed() -> None:
            nonlocal has_found
            has_found = True
            with self._lock:
                self._is_looking = False
                self._running += 1
            self.look()

        try:
            self._answer(claimed)
        except FarmError as error:
            log.warning("look.failed", **error.log_fields)
        except Exception:  # nobody waits for what this slot returns, so it would be lost
            log.exception("look.crashed")
        with self._lock:
            if has_found:
                self._running -= 1
            else:
                self._is_looking = False
        if has_found:
            self.look()
