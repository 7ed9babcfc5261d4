"""Crowds: owners with many requests under way, whose work rests beside an owner who comes with few.

In an owner's own line its requests wait for each other; but what they ask for takes up threads, Postgres and processors as well,
where nobody takes turns. So a crowd's work is followed by a rest, as long as itself, or ten times as long while processors are
short. Alone, or among crowds, nobody rests.
"""

import time
from collections import Counter

from api.limits.contention import Contention
from api.limits.owners import ANONYMOUS, NOBODY

# So many requests of one owner at a time are a crowd. A browser opens six connections.
CROWD = 8
# Times as long as the work.
REST, REST_IN_CONTENTION = 1, 10
# For so long after a request an owner counts as there, and as a crowd if it came as one.
LINGER_S = 1.0
# In whose name all without a key come, probes among them.
_SHARED = frozenset({NOBODY, ANONYMOUS})


class Crowds:
    """Who has requests under way at one event loop."""

    def __init__(self, contention: Contention | None = None) -> None:
        self._contention = contention or Contention()
        self._present: Counter[str] = Counter()
        # When they came last, first the one who did longest ago.
        self._crowds: dict[str, float] = {}
        self._few: dict[str, float] = {}
        # When one of the latter came last. Threads read it, who cannot look through what the loop changes.
        self._few_came_s = 0.0

    def enter(self, owner: str) -> None:
        """Note that a request of an owner comes."""
        self._present[owner] += 1
        now = time.monotonic()
        if self._present[owner] >= CROWD:
            self._few.pop(owner, None)
            _renew(self._crowds, owner, now)
        elif owner not in _SHARED and owner not in self._crowds:
            _renew(self._few, owner, now)
            self._few_came_s = now
        for those in self._crowds, self._few:
            _forget(those, before=now - LINGER_S)

    def leave(self, owner: str) -> None:
        """Note that a request of an owner has ended."""
        self._present[owner] -= 1
        if not self._present[owner]:
            del self._present[owner]

    def look(self) -> None:
        """See whether processors are short."""
        self._contention.look()

    @property
    def is_shared(self) -> bool:
        """Whether others than one crowd are there."""
        return bool(self._few) or len(self._present) > 1

    def has_few(self, owner: str) -> bool:
        """Whether an owner has few requests under way, of which none has to wait for another."""
        return owner in self._few or self._present[owner] == 1

    def is_crowd(self, owner: str) -> bool:
        """Whether an owner has, or lately had, many requests under way. Thread-safe."""
        return owner in self._crowds or self._present[owner] >= CROWD

    def rest_s(self, owner: str, work_s: float) -> float:
        """Return how long to rest after work for an owner that took so many seconds. Thread-safe."""
        are_there = bool(self._few) and time.monotonic() - self._few_came_s <= LINGER_S
        if not are_there or not self.is_crowd(owner):
            return 0.0
        return work_s * (REST_IN_CONTENTION if self._contention.is_felt else REST)


def _renew(those: dict[str, float], owner: str, now: float) -> None:
    those.pop(owner, None)
    those[owner] = now


def _forget(those: dict[str, float], *, before: float) -> None:
    while those and (longest := next(iter(those.items())))[1] < before:
        del those[longest[0]]
