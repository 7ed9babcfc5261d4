"""Workload of a day: a tide of small jobs, and bursts of large ones. Seeded; times in seconds from midnight."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from random import Random

from tests.support.factories import params

DAY_S = 86_400.0
# (owner, weight, priority, width, height, steps, images): who asks for what.
KINDS = (
    ("studio", 2.0, 0, 512, 512, 20, 1),
    ("studio", 2.0, 5, 512, 768, 30, 1),
    ("shop", 1.0, 0, 768, 768, 30, 4),
    ("archive", 1.0, -5, 768, 768, 40, 4),
)
BULK = ("archive", 1.0, -5, 768, 768, 50, 8)


@dataclass(slots=True)
class Job:
    """One submitted job and what became of it. `cost` is `GenerationParams.cost`."""

    id: int
    owner: str
    weight: float
    priority: int
    cost: int
    at_s: float
    virtual_start: float = 0.0
    started_s: float | None = None
    ended_s: float | None = None
    attempts: int = 0
    foretold_s: float | None = None

    @property
    def wait_s(self) -> float:
        """How long it waited for its first start."""
        return (self.started_s if self.started_s is not None else math.inf) - self.at_s


def arrivals(random: Random, *, hours: float, per_second: float) -> list[Job]:
    """Return the jobs of a day's first hours in the order in which they come; `per_second` is the mean without bursts."""
    end_s = hours * 3600
    asked = [*_tide(random, end_s, per_second), *_bursts(random, end_s, per_second)]
    asked.sort(key=lambda one: one[0])
    return [_job(number, at_s, kind) for number, (at_s, kind) in enumerate(asked)]


def _tide(random: Random, end_s: float, per_second: float) -> Iterator[tuple[float, tuple[object, ...]]]:
    """A Poisson process whose rate swings over the day, by thinning (Lewis, Shedler 1979)."""
    at_s, most = 0.0, 1.7 * per_second
    while (at_s := at_s + random.expovariate(most)) < end_s:
        if random.random() * 1.7 < 1 - 0.7 * math.cos(2 * math.pi * at_s / DAY_S):
            yield at_s, random.choices(KINDS, (8, 4, 2, 1))[0]


def _bursts(random: Random, end_s: float, per_second: float) -> Iterator[tuple[float, tuple[object, ...]]]:
    """One in two hours, all in a few minutes."""
    for _ in range(max(1, round(end_s / 7200))):
        begin_s, length_s = random.uniform(0, end_s * 0.9), random.uniform(60, 600)
        for _ in range(round(per_second * random.uniform(100, 1000))):
            yield begin_s + random.uniform(0, length_s), BULK


@cache
def _cost(width: int, height: int, steps: int, images: int) -> int:
    return params(width=width, height=height, steps=steps, num_images=images).cost


def _job(number: int, at_s: float, kind: tuple[object, ...]) -> Job:
    owner, weight, priority, *size = kind
    return Job(number, str(owner), float(str(weight)), int(str(priority)), _cost(*size), at_s)
