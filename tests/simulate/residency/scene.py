"""What is played: how many workers, which checkpoints, who asks for what, and when workers die. Seeded; times in seconds."""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from tests.simulate.day import Job

# Images of 20 steps that a worker renders in a second when every call is full: 8 in 20 x 40 ms.
FULL_SPEED = 10.0


@dataclass(slots=True)
class OneImage(Job):
    """A job of one image; its cost is 1, so that costs count images."""

    checkpoint: str = ""


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who asks: `rate` images a second while it is there, of the `names` most wanted checkpoints, or of those from `first` on."""

    name: str
    rate: float
    weight: float = 1.0
    names: int = 10**9
    first: int = 0
    is_even: bool = False  # names all of them equally often, one after the other
    from_s: float = 0.0
    until_s: float = 10.0**9
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Scene:
    """A stretch of time of one farm. Each `turn_s` demand moves: a tenth of the checkpoints swap their ranks."""

    name: str
    tenants: Sequence[Tenant]
    length_s: float
    workers: int = 20
    checkpoints: int = 300
    keeps: int = 24
    near_s: float = 0.15  # from the memory that keeps checkpoints warm
    disk_s: float = 1.5
    warm_up_s: float = 30.0
    turn_s: float | None = None
    deaths_s: Sequence[float] = field(default=())

    @property
    def names(self) -> Sequence[str]:
        """The checkpoints, most wanted first when it begins."""
        return [f"checkpoint-{number:03}" for number in range(self.checkpoints)]


def tenants_of(rate: float) -> Sequence[Tenant]:
    """Return twelve tenants of unequal size and weight that ask for `rate` together."""
    sizes = [8, 4, 4, 2, 2, 2, 2, 1, 1, 1, 1, 1]
    weights = [2.0, 2.0, 1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5]
    parts = zip(sizes, weights, strict=True)
    return [Tenant(f"t{n}", rate * size / sum(sizes), weight) for n, (size, weight) in enumerate(parts)]


def arrivals(scene: Scene, random: Random) -> list[OneImage]:
    """Return the jobs in the order in which they come."""
    asked = [one for tenant in scene.tenants for one in _asked(scene, tenant, Random(random.random()))]
    asked.sort(key=lambda one: one[0])
    return [
        OneImage(number, tenant.name, tenant.weight, tenant.priority, 1, at_s, checkpoint=name)
        for number, (at_s, tenant, name) in enumerate(asked)
    ]


def popularity(count: int) -> Sequence[float]:
    """Return Zipf's law with exponent 1."""
    total = sum(1 / (rank + 1) for rank in range(count))
    return [1 / (rank + 1) / total for rank in range(count)]


def demand(scene: Scene) -> dict[str, float]:
    """Return what is asked of each checkpoint when it begins, a second."""
    found = dict.fromkeys(scene.names, 0.0)
    for tenant in scene.tenants:
        if tenant.from_s == 0.0:
            names = _names(tenant, scene.names)
            parts = [1 / len(names)] * len(names) if tenant.is_even else popularity(len(names))
            for name, part in zip(names, parts, strict=True):
                found[name] += tenant.rate * part
    return found


def _names(tenant: Tenant, ranked: Sequence[str]) -> Sequence[str]:
    return ranked[tenant.first : tenant.first + tenant.names]


def _asked(scene: Scene, tenant: Tenant, random: Random) -> Iterator[tuple[float, Tenant, str]]:
    at_s, in_turn = tenant.from_s, itertools.count()
    turns = _ranks(scene)
    turn_at_s, ranked = next(turns)
    names = _names(tenant, ranked)
    sums = list(itertools.accumulate(popularity(len(names))))
    while (at_s := at_s + random.expovariate(tenant.rate)) < min(scene.length_s, tenant.until_s):
        while at_s >= turn_at_s:
            turn_at_s, ranked = next(turns)
            names = _names(tenant, ranked)
        drawn = bisect.bisect(sums, random.random() * sums[-1])
        yield at_s, tenant, names[next(in_turn) % len(names) if tenant.is_even else min(drawn, len(names) - 1)]


def _ranks(scene: Scene) -> Iterator[tuple[float, Sequence[str]]]:
    """Yield the ranking of checkpoints, and until when it holds; the same for every tenant."""
    random, ranked = Random(scene.name), list(scene.names)
    for turn in itertools.count(1):
        yield (turn * scene.turn_s if scene.turn_s else 10.0**9), tuple(ranked)
        for _ in range(len(ranked) // 20):
            one, other = random.randrange(len(ranked)), random.randrange(len(ranked))
            ranked[one], ranked[other] = ranked[other], ranked[one]
