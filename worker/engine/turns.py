"""Turns of checkpoints: whose weights are resident in the next tick, by start-time fair queuing that charges swaps. No torch.

Each tick's seconds count as service of the checkpoint that had it, the price of a swap as service of the one that it leads to. It
is another's turn once that has been served less by several prices: where a swap takes milliseconds checkpoints alternate by
tick, where it takes seconds one stays for many ticks, and the others' wait is bounded all the same.
"""

from collections.abc import Callable, Collection
from typing import Generic, TypeVar

C = TypeVar("C")

STAY = 5.0  # prices of a swap by which the present one may be ahead: swaps take a tenth of the time at most


class Turns(Generic[C]):
    """Chooses among checkpoints that have work. `price_s` returns the seconds that it takes to make one resident now."""

    def __init__(self, price_s: Callable[[C], float]) -> None:
        self._price_s = price_s
        self._served_s: dict[C, float] = {}
        self._present: C | None = None

    def choose(self, wanted: Collection[C]) -> C | None:
        """Return whose turn it is, and charge it for a swap; None if nobody has work. Among equals the earlier one is first."""
        self._note(wanted)
        present = self._present
        least = min(self._served_s, key=lambda one: self._served_s[one], default=None)
        if least is None or least == present:
            return least
        if present is not None and present in self._served_s:
            ahead_s = self._served_s[present] - self._served_s[least]
            if ahead_s <= STAY * self._price_s(least):
                return present
        self._served_s[least] += self._price_s(least)
        self._present = least
        return least

    def spent(self, seconds: float) -> None:
        """Count a tick as service of the one whose turn it is."""
        if self._present is not None and self._present in self._served_s:
            self._served_s[self._present] += seconds

    def _note(self, wanted: Collection[C]) -> None:
        """Forget who has no work any more; who is new starts level with the least served, so that absence saves up nothing."""
        kept = {one: self._served_s[one] for one in wanted if one in self._served_s}
        level = min(kept.values(), default=0.0)
        self._served_s = {one: kept.get(one, level) for one in wanted}
