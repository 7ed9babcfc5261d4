"""The simulated farm: an event loop in simulated time, around the farm's own decisions.

Real: the number of workers and which to remove first (`api.farm.scaling`), the forecast of a job's start
(`shared.vocabulary.forecast`); a test compares the claim order with the database's.
Modelled: the machines, the clouds, the clients.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from random import Random

from api.farm.scaling import Goal, desired_workers
from shared.vocabulary.forecast import Load, forecast_queued
from tests.simulate.day import Job
from tests.simulate.fleet import SLOTS, Machine
from tests.simulate.turns import Turns
from worker.slots.attempts import OLDEST_LEVEL_EVERY

# Cost a second: a 512 px picture in 20 guided steps takes one.
SPEED = 160_000.0
LOOK_S = 30.0
BOOT_S = 150.0
SPOT_LIFE_S, NOTICED = 5 * 3600.0, 0.8
LEASE_S, DRAIN_S = 22.0, 25.0
# A scale-in follows the most that was wanted for so long.
CALM_S = 600.0
FORETOLD_EVERY = 50


@dataclass(frozen=True, slots=True)
class Plan:
    """How many machines there are: always `fixed`, or as the farm wants within `goal`. `spot` is the share of spot machines."""

    name: str
    goal: Goal
    fixed: int | None = None
    spot: float = 0.7


@dataclass(slots=True)
class Outcome:
    """What a day came to. Times are machine seconds; `history` is (time, queued, machines) at every look."""

    plan: Plan
    jobs: list[Job]
    paid_s: float = 0.0
    busy_s: float = 0.0
    repeated_s: float = 0.0
    interruptions: int = 0
    most: int = 0
    ended_twice: int = 0
    history: list[tuple[float, int, int]] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """Jobs that were accepted and never ended, or ended twice."""
        return sum(job.ended_s is None for job in self.jobs) + self.ended_twice


class Simulation:
    """One farm with one plan for one list of jobs."""

    def __init__(self, plan: Plan, jobs: list[Job], random: Random) -> None:
        self._plan = plan
        self._random = random
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._now_s = 0.0
        self._turns = Turns()
        self._machines: dict[Machine, None] = {}
        self._with_room: dict[Machine, None] = {}
        self._booting = 0
        self._unfinished = len(jobs)
        self._wanted: deque[tuple[float, int]] = deque()
        self.outcome = Outcome(plan, jobs)

    def run(self) -> Outcome:
        """Run until every job has ended."""
        for job in self.outcome.jobs:
            self._at(job.at_s, lambda job=job: self._submit(job))  # type: ignore[misc]
        for _ in range(self._plan.fixed or self._plan.goal.minimum):
            self._boot(0.0)
        self._at(LOOK_S, self._look)
        while self._unfinished and self._events:
            self._now_s, _, act = heappop(self._events)
            act()
        for machine in list(self._machines):
            self._remove(machine)
        return self.outcome

    def _at(self, at_s: float, act: Callable[[], None]) -> None:
        heappush(self._events, (at_s, next(self._order), act))

    def _submit(self, job: Job) -> None:
        self._turns.submit(job)
        if job.id % FORETOLD_EVERY == 0:
            job.foretold_s = forecast_queued(self._load(), self._turns.ahead(job), job.cost).start_s
        if self._with_room:
            self._fill(next(iter(self._with_room)))

    def _load(self) -> Load:
        machines = len(self._machines)
        running = sum(machine.running for machine in self._machines)
        running_cost = sum(machine.left(self._now_s) + machine.done(self._now_s) for machine in self._machines)
        return Load(
            "one",
            queued=len(self._turns),
            queued_cost=self._turns.cost,
            running=running,
            running_cost=int(running_cost),
            running_cost_left=sum(machine.left(self._now_s) for machine in self._machines),
            workers=machines,
            slots=machines * SLOTS,
            speed=sum(machine.speed for machine in self._machines) or None,
        )

    def _fill(self, machine: Machine) -> None:
        """Let a machine claim while it has room, and wait for its next end."""
        while machine.has_room:
            machine.claims += 1
            job = self._turns.claim(oldest_level=machine.claims % OLDEST_LEVEL_EVERY == 0)
            if job is None:
                break
            job.attempts += 1
            job.started_s = self._now_s if job.started_s is None else job.started_s
            machine.start(job, self._now_s)
        if machine.has_room:
            self._with_room[machine] = None
        else:
            self._with_room.pop(machine, None)
        end_s, changes = machine.next_end_s(), machine.changes
        if end_s is not None:
            self._at(max(end_s, self._now_s), lambda: self._end(machine, changes))

    def _end(self, machine: Machine, changes: int) -> None:
        if machine.changes != changes or machine not in self._machines:
            return  # something has changed since this end was foreseen
        job = machine.finish(self._now_s)
        self.outcome.ended_twice += job.ended_s is not None
        job.ended_s = self._now_s
        self._unfinished -= 1
        self._fill(machine)
        if machine.is_draining and not machine.is_busy:
            self._remove(machine)

    def _look(self) -> None:
        """What an autoscaler does now and then."""
        self.outcome.history.append((self._now_s, len(self._turns), len(self._machines)))
        self.outcome.most = max(self.outcome.most, len(self._machines))
        working = [machine for machine in self._machines if not machine.is_draining]
        missing = (self._plan.fixed or self._target(working)) - len(working) - self._booting
        for _ in range(missing):
            self._boot(BOOT_S)
        if self._plan.fixed is None and missing < 0:
            self._shrink(working, -missing)
        self._at(self._now_s + LOOK_S, self._look)

    def _target(self, working: list[Machine]) -> int:
        """What the farm wants now, or wanted at most of late."""
        load = self._load()
        speed = load.speed / load.workers if load.speed else SPEED
        wanted = desired_workers(
            load.queued_cost + load.running_cost_left, speed, workers=len(working), goal=self._plan.goal
        )
        self._wanted.append((self._now_s, wanted))
        while self._wanted[0][0] < self._now_s - CALM_S:
            self._wanted.popleft()
        return max(wanted for _, wanted in self._wanted)

    def _shrink(self, working: list[Machine], surplus: int) -> None:
        # Least work lost first, as an autoscaler goes by `farm_worker_scale_in_cost`.
        by_loss = sorted(working, key=lambda machine: (machine.done(self._now_s) / machine.speed, machine.name))
        for machine in by_loss[:surplus]:
            self._drain(machine)

    def _boot(self, boot_s: float) -> None:
        self._booting += 1
        self._at(self._now_s + boot_s, self._open)

    def _open(self) -> None:
        self._booting -= 1
        is_spot = self._random.random() < self._plan.spot
        speed = SPEED * self._random.uniform(0.9, 1.1)
        machine = Machine(f"m{next(self._order)}", speed, self._now_s, is_spot)
        self._machines[machine] = None
        if is_spot:
            self._at(self._now_s + self._random.expovariate(1 / SPOT_LIFE_S), lambda: self._interrupt(machine))
        self._fill(machine)

    def _interrupt(self, machine: Machine) -> None:
        if machine not in self._machines:
            return
        self.outcome.interruptions += 1
        if self._random.random() < NOTICED:
            self._drain(machine)
        else:
            self._at(self._now_s + LEASE_S, self._rescued(machine))
            self._remove(machine)

    def _drain(self, machine: Machine) -> None:
        """Let it end what it can within the grace; the rest is handed back."""
        machine.is_draining = True
        self._with_room.pop(machine, None)
        if machine.is_busy:
            self._at(self._now_s + DRAIN_S, lambda: self._hand_back(machine))
        else:
            self._remove(machine)

    def _hand_back(self, machine: Machine) -> None:
        if machine in self._machines:
            self._rescued(machine)()
            self._remove(machine)

    def _rescued(self, machine: Machine) -> Callable[[], None]:
        """Stop what a machine runs; the act that is returned queues it again."""
        stopped, wasted = machine.abandon(self._now_s)
        self.outcome.repeated_s += wasted / machine.speed

        def queue() -> None:
            for job in stopped:
                self._turns.give_back(job)
            while self._with_room and len(self._turns):
                self._fill(next(iter(self._with_room)))

        return queue

    def _remove(self, machine: Machine) -> None:
        del self._machines[machine]
        self._with_room.pop(machine, None)
        self.outcome.paid_s += self._now_s - machine.since_s
        self.outcome.busy_s += machine.busy_s
