"""Quota of queued jobs, per key and for the farm. Counts in the database at most once a second, however many submits come.

Between counts a process adds the jobs that it admitted itself; several processes may together admit a little more than the limit.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

from sqlalchemy.orm import Session

from api.jobs import queries
from shared.errors import QueueFull, QueueFullForKey

COUNTED_FOR_S = 1.0
# Of everyone's jobs together; owners are never empty.
EVERYONE = ""
RETRY_AFTER_S = 10.0
MAX_REMEMBERED = 10_000


@dataclass(slots=True)
class QueuedCount:
    """Queued jobs: the last count plus the jobs admitted since."""

    queued: int
    until: float


class Quota:
    """Admits jobs while the queue has room. Thread-safe."""

    def __init__(self, max_queued: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_queued = max_queued
        self._clock = clock
        self._counts: dict[str, QueuedCount] = {}
        self._lock = Lock()

    def admit(self, session: Callable[[], Session], owner: str, limit: int | None, *, count: int = 1) -> None:
        """Admit `count` jobs of an owner whose own limit is `limit`. Raises `QueueFullForKey` or `QueueFull`.

        Asks for a session only where it counts anew.
        """
        if limit is not None and not self._fits(session, owner, count, limit):
            raise QueueFullForKey(f"This API key may have at most {limit} queued jobs.", retry_after_s=RETRY_AFTER_S)
        if not self._fits(session, EVERYONE, count, self._max_queued):
            raise QueueFull(
                f"The queue is full: this farm takes at most {self._max_queued} queued jobs.",
                retry_after_s=RETRY_AFTER_S,
            )

    def forget(self) -> None:
        """Drop the counts, so that the next submit counts again."""
        with self._lock:
            self._counts.clear()

    def _fits(self, session: Callable[[], Session], owner: str, count: int, limit: int) -> bool:
        with self._lock:
            current = self._counts.get(owner)
            if current is None or current.until <= self._clock():
                current = self._recount(session(), owner, limit)
            if current.queued + count > limit:
                return False
            current.queued += count
            return True

    def _recount(self, session: Session, owner: str, limit: int) -> QueuedCount:
        queued = queries.count_queued(session, owner=owner or None, at_most=limit)
        if len(self._counts) >= MAX_REMEMBERED:
            self._counts.clear()
        fresh = QueuedCount(queued, self._clock() + COUNTED_FOR_S)
        self._counts[owner] = fresh
        return fresh
