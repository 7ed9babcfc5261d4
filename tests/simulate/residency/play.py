"""The simulated fleet: an event loop in simulated time around a policy."""

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from random import Random

from tests.simulate.residency.machine import Gpu
from tests.simulate.residency.policies import Policy
from tests.simulate.residency.queues import Queues
from tests.simulate.residency.scene import OneImage, Scene, arrivals, demand
from worker.fleet.members import Member

# Workers look so often at what waits, unless something wakes them.
LOOK_S = 0.25
# How often homes are computed and demand is measured, and how fast it is forgotten.
MEET_S, HALF_LIFE_S = 10.0, 600.0
# A dead worker is missed after so long, and replaced after so long.
SILENT_S, BOOT_S = 20.0, 150.0


@dataclass(slots=True)
class Ran:
    """What came of a scene. `moved` are (when a worker died, the job, when it ran elsewhere)."""

    scene: Scene
    policy: str
    jobs: list[OneImage]
    gpus: list[Gpu] = field(default_factory=list)
    images_in_calls: int = 0
    calls: int = 0
    disk_loads_s: list[float] = field(default_factory=list)
    dead: dict[int, float] = field(default_factory=dict)
    moved_s: list[float] = field(default_factory=list)
    gpu_s: float = 0.0
    ended_twice: int = 0


class Play:
    """One farm with one policy for one list of jobs."""

    def __init__(self, scene: Scene, policy: Policy, seed: int) -> None:
        self._scene, self._policy = scene, policy
        random = Random(f"{seed} {scene.name}")
        self._random = random
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._now_s = 0.0
        self._queues = Queues(scene.names)
        self._gpus: dict[str, Gpu] = {}
        self._members: dict[str, Member] = {}
        self._demand = demand(scene)
        self._came: Counter[str] = Counter()
        self._library = frozenset(scene.names)
        self.ran = Ran(scene, policy.name, arrivals(scene, random))

    def run(self) -> Ran:
        """Run to the end of the scene."""
        for _ in range(self._scene.workers):
            self._boot()
        self._policy.meet(self._demand, list(self._members.values()))
        for gpu in self._gpus.values():
            for name in list(self._policy.homes_of(gpu))[: self._scene.keeps]:
                gpu.keep(name, ())
        for job in self.ran.jobs:
            self._at(job.at_s, lambda job=job: self._submit(job))  # type: ignore[misc]
        for at_s in self._scene.deaths_s:
            self._at(at_s, self._kill)
        self._at(MEET_S, self._meet)
        self._at(self._scene.warm_up_s, self._begin)
        while self._events and self._events[0][0] <= self._scene.length_s:
            self._now_s, _, act = heappop(self._events)
            act()
        for gpu in self._gpus.values():
            gpu.advance(self._scene.length_s)
            self.ran.gpu_s += self._scene.length_s - gpu.since_s
        return self.ran

    def _at(self, at_s: float, act: Callable[[], None]) -> None:
        heappush(self._events, (at_s, next(self._order), act))

    def _boot(self) -> None:
        number = next(self._order)
        first = self._scene.names[len(self.ran.gpus) % self._scene.checkpoints]
        gpu = Gpu(f"w{number}", self._scene, first, (first,), OrderedDict({first: None}), since_s=self._now_s)
        self._gpus[gpu.id] = gpu
        self.ran.gpus.append(gpu)
        self._tell(gpu)
        self._at(self._now_s + LOOK_S * self._random.random(), lambda: self._watch(gpu))

    def _begin(self) -> None:
        """Count from here: the farm is as if it had run for long."""
        self.ran.disk_loads_s.clear()
        for gpu in self._gpus.values():
            gpu.forget(self._now_s)

    def _tell(self, gpu: Gpu) -> None:
        """Let the others see how a worker is."""
        intends = gpu.open[0] if gpu.open[0] != gpu.resident else None
        self._members[gpu.id] = Member(gpu.id, self._scene.keeps, gpu.speed, self._library, gpu.resident, intends)

    def _submit(self, job: OneImage) -> None:
        self._came[job.checkpoint] += 1
        self._queues.submit(job)
        self._ring(job)

    def _ring(self, job: OneImage) -> None:
        """Wake one that has the checkpoint open and room, or else those that idle."""
        for gpu in self._gpus.values():
            if job.checkpoint == gpu.resident and job.checkpoint in gpu.open and gpu.has_room(self._now_s):
                self._fill(gpu)
                if job.started_s is not None:
                    return
        for gpu in list(self._gpus.values()):
            if (not gpu.images or gpu.alternates) and gpu.has_room(self._now_s) and not gpu.is_turning:
                self._look(gpu)
                if job.started_s is not None:
                    return

    def _watch(self, gpu: Gpu) -> None:
        if gpu.id in self._gpus:
            self._look(gpu)
            self._at(self._now_s + LOOK_S, lambda: self._watch(gpu))

    def _look(self, gpu: Gpu) -> None:
        """Decide what to have open, and claim."""
        if self._now_s < gpu.swapping_until_s or gpu.is_turning:
            return
        gpu.advance(self._now_s)
        wanted = self._policy.open(gpu, list(self._members.values()), self._queues, self._now_s)
        if wanted != gpu.open:
            gpu.open = wanted
            self._tell(gpu)
        self._fill(gpu)

    def _fill(self, gpu: Gpu) -> None:
        """Turn, where it is to turn and nothing of the old runs any more; else claim."""
        name = gpu.open[0]
        if name != gpu.resident and (not gpu.images or (gpu.alternates and name in gpu.warm)):
            self._turn(gpu, name)
        while not gpu.is_turning and gpu.has_room(self._now_s):
            job = self._policy.claim(gpu, self._queues)
            if job is None:
                break
            self._start(gpu, job)
        self._foresee(gpu)

    def _turn(self, gpu: Gpu, name: str) -> None:
        if name not in gpu.warm:
            self.ran.disk_loads_s.append(self._now_s)
        until_s = gpu.turn(name, self._now_s)
        gpu.keep(name, self._policy.homes_of(gpu))
        self._tell(gpu)
        self._at(until_s, lambda: self._arrived(gpu))

    def _arrived(self, gpu: Gpu) -> None:
        if gpu.id in self._gpus:
            self._fill(gpu)
            if not gpu.images:
                self._look(gpu)

    def _start(self, gpu: Gpu, job: OneImage) -> None:
        job.attempts += 1
        job.started_s = self._now_s if job.started_s is None else job.started_s
        if (died_s := self.ran.dead.pop(job.id, None)) is not None:
            self.ran.moved_s.append(self._now_s - died_s)
        gpu.start(job, self._now_s)

    def _foresee(self, gpu: Gpu) -> None:
        end_s, changes = gpu.next_end_s(), gpu.changes
        if end_s is not None:
            self._at(max(end_s, self._now_s), lambda: self._end(gpu, changes))

    def _end(self, gpu: Gpu, changes: int) -> None:
        if gpu.changes != changes or gpu.id not in self._gpus:
            return  # something has changed since this end was foreseen
        for job in gpu.finish(self._now_s):
            self.ran.ended_twice += job.ended_s is not None
            job.ended_s = self._now_s
        self._fill(gpu)
        if gpu.has_room(self._now_s):
            self._look(gpu)

    def _meet(self) -> None:
        """Measure demand, and compute who is home to what."""
        keep = 0.5 ** (MEET_S / HALF_LIFE_S)
        for name in self._demand:
            self._demand[name] = keep * self._demand[name] + (1 - keep) * self._came[name] / MEET_S
        self._came.clear()
        for gpu in self._gpus.values():
            self._tell(gpu)
        self._policy.meet(self._demand, list(self._members.values()))
        for gpu in self._gpus.values():
            self._bring(gpu)
        self._at(self._now_s + MEET_S, self._meet)

    def _bring(self, gpu: Gpu) -> None:
        """Read what it is home to and lacks, one after the other, beside its work."""
        missing = [name for name in self._policy.homes_of(gpu)[: self._scene.keeps] if name not in gpu.warm]
        if gpu.bringing is None and missing and gpu.id in self._gpus:
            gpu.bringing = missing[0]
            self._at(self._now_s + self._scene.disk_s, lambda: self._brought(gpu))

    def _brought(self, gpu: Gpu) -> None:
        if gpu.bringing is not None:
            gpu.brought += 1
            gpu.keep(gpu.bringing, self._policy.homes_of(gpu))
            gpu.bringing = None
            self._bring(gpu)

    def _kill(self) -> None:
        """A worker dies with what it runs; others miss it later, and another one takes its place."""
        gpu = self._random.choice(list(self._gpus.values()))
        gpu.advance(self._now_s)
        del self._gpus[gpu.id]
        self.ran.gpu_s += self._now_s - gpu.since_s
        lost = [job for _, job in gpu.images]
        known = {*self._policy.homes_of(gpu), gpu.resident}
        waiting = [job for job in self._queues.in_order.values() if job.checkpoint in known]
        self.ran.dead.update(dict.fromkeys((job.id for job in [*lost, *waiting]), self._now_s))
        self._at(self._now_s + SILENT_S, lambda: self._missed(gpu, lost))
        self._at(self._now_s + BOOT_S, self._boot)

    def _missed(self, gpu: Gpu, lost: list[OneImage]) -> None:
        del self._members[gpu.id]
        self._policy.meet(self._demand, list(self._members.values()))
        for other in self._gpus.values():
            self._bring(other)
        for job in lost:
            self._queues.give_back(job)
            self._ring(job)
