"""Simulated GPUs that hold several checkpoints: what is resident, what memory keeps warm, and images that advance by ticks."""

import math
from collections import Counter, OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field

from tests.simulate.residency.scene import OneImage, Scene

STEPS, SLOTS = 20, 8
# Checkpoints this near alternate, after so many ticks each; others wait until the GPU is empty.
ALTERNATING_S, TICKS_EACH = 0.010, 10


def step_s(images: int) -> float:
    """Return how long one UNet call takes."""
    return max(0.018, 0.005 * images)


@dataclass(slots=True, eq=False)
class Gpu:
    """One worker. `images` are those that run, each with the ticks that it still needs."""

    id: str
    scene: Scene
    resident: str
    open: tuple[str, ...]
    warm: OrderedDict[str, None]
    since_s: float = 0.0
    brought: int = 0
    calls: int = 0
    rows: int = 0
    turned_s: float = 0.0
    swapping_until_s: float = 0.0
    bringing: str | None = None
    images: list[tuple[int, OneImage]] = field(default_factory=list)
    ticks: int = 0
    changes: int = 0
    swaps: Counter[str] = field(default_factory=Counter)
    swap_s: float = 0.0
    busy_s: float = 0.0
    speed: float | None = None
    used_s: float = 0.0
    _at_s: float = 0.0
    _done: int = 0
    _worked_s: float = 0.0

    @property
    def is_turning(self) -> bool:
        """Whether it waits for what runs to end, to make something else resident."""
        return self.open[0] != self.resident

    @property
    def alternates(self) -> bool:
        """Whether its checkpoints are near enough to alternate."""
        return self.scene.near_s <= ALTERNATING_S

    def price_s(self, name: str) -> float:
        """Return the seconds to make a checkpoint resident."""
        if name == self.resident:
            return 0.0
        return self.scene.near_s if name in self.warm else self.scene.disk_s

    def has_room(self, now_s: float) -> bool:
        """Whether it may claim: a place is free, and what it has open can run."""
        return len(self.images) < SLOTS and now_s >= self.swapping_until_s

    def tick_s(self) -> float:
        """Return how long it takes until each image has advanced by one tick."""
        sizes = Counter(job.checkpoint for _, job in self.images)
        change_s = self.scene.near_s * len(sizes) / TICKS_EACH if len(sizes) > 1 else 0.0
        return sum(map(step_s, sizes.values())) + change_s

    def advance(self, now_s: float) -> None:
        """Let whole ticks pass."""
        if not self.images:
            self._at_s = max(self._at_s, now_s)
            return
        each_s = self.tick_s()
        ticks = math.floor((now_s - self._at_s) / each_s + 1e-9)
        if ticks > 0:
            self.ticks += ticks
            self._at_s += ticks * each_s
            sizes = len({job.checkpoint for _, job in self.images})
            changed_s = ticks * self.scene.near_s * sizes / TICKS_EACH if sizes > 1 else 0.0
            self.calls += ticks * sizes
            self.rows += ticks * len(self.images)
            self.swap_s += changed_s
            self.busy_s += ticks * each_s - changed_s
            self._worked_s += ticks * each_s - changed_s

    def start(self, job: OneImage, now_s: float) -> None:
        """Run an image from the next tick on."""
        self.advance(now_s)
        joins = 1 if self.images and now_s > self._at_s else 0
        if not self.images:
            self._at_s = now_s
        self.images.append((self.ticks + joins + STEPS, job))
        self.changes += 1
        self.used_s = now_s

    def next_end_s(self) -> float | None:
        """Return when the next image ends."""
        if not self.images:
            return None
        return self._at_s + (min(end for end, _ in self.images) - self.ticks) * self.tick_s()

    def finish(self, now_s: float) -> list[OneImage]:
        """Take the images that end now."""
        self.advance(now_s)
        ended = [job for end, job in self.images if end <= self.ticks]
        self.images = [(end, job) for end, job in self.images if end > self.ticks]
        self.changes += 1
        self._done += len(ended)
        self.used_s = now_s
        if self._worked_s > 1.0:
            self.speed = self._done / self._worked_s
        return ended

    def turn(self, name: str, now_s: float) -> float:
        """Make a checkpoint resident. Returns when it is."""
        price_s = self.price_s(name)
        if name != self.resident:
            self.swaps["near" if price_s == self.scene.near_s else "disk"] += 1
            self.swap_s += price_s
        self.resident, self.turned_s, self.used_s = name, now_s, now_s
        self.swapping_until_s = now_s + price_s
        return self.swapping_until_s

    def forget(self, now_s: float) -> None:
        """Set all counters to zero."""
        self.advance(now_s)
        self.since_s, self.swap_s, self.busy_s, self.calls, self.rows, self.brought = now_s, 0.0, 0.0, 0, 0, 0
        self.swaps.clear()

    def keep(self, name: str, wanted: Collection[str]) -> None:
        """Keep a checkpoint warm; the least recently used goes, those that it is no home to first."""
        self.warm[name] = None
        self.warm.move_to_end(name)
        while len(self.warm) > self.scene.keeps:
            others = [one for one in self.warm if one not in wanted and one not in (name, self.resident)]
            oldest = others[0] if others else next(one for one in self.warm if one not in (name, self.resident))
            del self.warm[oldest]
