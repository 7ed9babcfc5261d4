"""Who takes what: the farm's own homes and choice, and three ways of others, written from their descriptions."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from tests.simulate.residency.machine import Gpu
from tests.simulate.residency.queues import Queues
from tests.simulate.residency.scene import OneImage
from worker.fleet.choice import choose
from worker.fleet.homes import homes
from worker.fleet.members import Member
from worker.slots.attempts import OLDEST_LEVEL_EVERY


class Policy(Protocol):
    """What a worker has open, and which job it claims."""

    name: str

    def meet(self, demand: Mapping[str, float], members: Sequence[Member]) -> None:
        """Learn of demand, and of who is there."""

    def homes_of(self, gpu: Gpu) -> Sequence[str]:
        """Return what a worker is home to, and so brings near."""

    def open(self, gpu: Gpu, members: Sequence[Member], queues: Queues, now_s: float) -> tuple[str, ...]:
        """Return what a worker should have open."""

    def claim(self, gpu: Gpu, queues: Queues) -> OneImage | None:
        """Take a job of what a worker has open."""


class Homes:
    """The farm's own."""

    name = "homes"

    def __init__(self) -> None:
        self._homes: Mapping[str, tuple[str, ...]] = {}
        self._of: dict[str, list[str]] = {}
        self._choices = 0

    def meet(self, demand: Mapping[str, float], members: Sequence[Member]) -> None:
        self._homes = homes(demand, members)
        self._of = {}
        for name, ids in sorted(self._homes.items(), key=lambda pair: -demand.get(pair[0], 0.0)):
            for one in ids:
                self._of.setdefault(one, []).append(name)

    def homes_of(self, gpu: Gpu) -> Sequence[str]:
        return self._of.get(gpu.id, [])

    def open(self, gpu: Gpu, members: Sequence[Member], queues: Queues, now_s: float) -> tuple[str, ...]:
        self._choices += 1
        return choose(
            next(one for one in members if one.id == gpu.id),
            members,
            self._homes,
            queues.waiting(now_s),
            open_now=gpu.open,
            price_s=gpu.price_s,
            idle=not gpu.images,
            stayed_s=now_s - gpu.turned_s,
            oldest_level=self._choices % OLDEST_LEVEL_EVERY == 0,
        )

    def claim(self, gpu: Gpu, queues: Queues) -> OneImage | None:
        return queues.claim(gpu.open)


class _Others:
    """What the others have in common: no homes, and one checkpoint at a time."""

    def meet(self, demand: Mapping[str, float], members: Sequence[Member]) -> None:
        pass

    def homes_of(self, gpu: Gpu) -> Sequence[str]:  # noqa: ARG002 - as the protocol has it
        return ()


class LookAhead(_Others):
    """One queue: a worker takes a job of its resident checkpoint from the first few, else of a warm one, else the first."""

    def __init__(self, far: int) -> None:
        self.name = f"look-ahead {far}" if far > 1 else "first come"
        self._far = far

    def open(self, gpu: Gpu, members: object, queues: Queues, now_s: float) -> tuple[str, ...]:  # noqa: ARG002
        found = self._next(gpu, queues)
        return gpu.open if found is None or gpu.images else (found.checkpoint,)

    def claim(self, gpu: Gpu, queues: Queues) -> OneImage | None:
        found = self._next(gpu, queues)
        return queues.claim([gpu.resident]) if found and found.checkpoint == gpu.resident else None

    def _next(self, gpu: Gpu, queues: Queues) -> OneImage | None:
        first = [job for job, _ in zip(queues.in_order.values(), range(self._far), strict=False)]
        resident = (job for job in first if job.checkpoint == gpu.resident)
        warm = (job for job in first if job.checkpoint in gpu.warm)
        return next(resident, None) or next(warm, None) or (first[0] if first else None)


class Pressure(_Others):
    """SwarmUI's: stay while there is work; else load what has the highest 10 x jobs + seconds waited, after 1.5 s."""

    name = "pressure"

    def open(self, gpu: Gpu, members: Sequence[Member], queues: Queues, now_s: float) -> tuple[str, ...]:
        if gpu.images or queues.count(gpu.resident):
            return (gpu.resident,)
        loading = {one.intends for one in members}
        waits = {name: now_s - head.at_s for name in queues.names() if (head := queues.head(name))}
        late = [name for name, wait_s in waits.items() if wait_s > 1.5 and name not in loading]
        return (max(late, key=lambda name: 10 * queues.count(name) + waits[name]),) if late else gpu.open

    def claim(self, gpu: Gpu, queues: Queues) -> OneImage | None:
        return queues.claim([gpu.resident])
