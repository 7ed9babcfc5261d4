"""In-memory model of the claim order of `shared.jobs.fair_queue`, fast enough for millions of claims.

`test_claims_go_in_the_databases_order` compares it with the database.
"""

import math
from collections import defaultdict
from heapq import heappop, heappush

from api.farm.queue_stats import FARTHEST_COUNTED
from shared.vocabulary.forecast import Ahead
from tests.simulate.day import Job


class FarmClocks:
    """The clock of each priority and the shares of owners there, over all checkpoints, which every worker can load."""

    def __init__(self) -> None:
        self.now: dict[int, float] = defaultdict(float)
        self.shares: dict[tuple[int, str], float] = {}
        self.queues: list[Turns] = []

    def move(self, level: int, start: float) -> None:
        """Move a clock towards the start of a job that is taken: no further than to the first that could be instead."""
        now = self.now[level]
        if start > now:
            firsts = (queue.first_start(level, now) for queue in self.queues)
            self.now[level] = min(start, min(firsts, default=math.inf))


class Turns:
    """The queue of one checkpoint. All queues of a farm are given its clocks."""

    def __init__(self, farm: FarmClocks | None = None) -> None:
        self._farm = farm or FarmClocks()
        self._farm.queues.append(self)
        self._levels: dict[int, list[tuple[float, int, Job]]] = defaultdict(list)
        self._shares: dict[tuple[int, str], float] = {}
        self._clocks: dict[int, float] = defaultdict(float)
        self._oldest: list[tuple[int, Job]] = []
        self._waiting: set[int] = set()
        self.cost = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Give a job its turn."""
        share, length = (job.priority, job.owner), job.cost / job.weight
        now = self._farm.now[job.priority]
        start = max(self._farm.shares.get(share, now), now)
        self._farm.shares[share] = start + length
        job.virtual_start = max(start - self._behind(job.priority), self._shares.get(share, 0.0))
        self._shares[share] = job.virtual_start + length
        self.give_back(job)

    def give_back(self, job: Job) -> None:
        """Put a job (back) into its place."""
        heappush(self._levels[job.priority], (job.virtual_start, job.id, job))
        heappush(self._oldest, (job.id, job))
        self._waiting.add(job.id)
        self.cost += job.cost

    def claim(self, *, oldest_level: bool = False) -> Job | None:
        """Take the next job."""
        if not self._waiting:
            return None
        level = self._oldest_level() if oldest_level else max(at for at, jobs in self._levels.items() if jobs)
        start, number, job = heappop(self._levels[level])
        self._waiting.discard(number)
        self.cost -= job.cost
        self._clocks[level] = max(self._clocks[level], start)
        self._farm.move(level, start)
        return job

    def first_start(self, level: int, now: float) -> float:
        """Return the first start at a priority that its clock has not passed."""
        queue = self._levels.get(level)
        if not queue:
            return math.inf
        return queue[0][0] if queue[0][0] >= now else min((at for at, _, _ in queue if at >= now), default=math.inf)

    def ahead(self, job: Job) -> Ahead:
        """Return what is claimed before a waiting job, as `api.farm.queue_stats.ahead` counts it."""
        levels = [(level, queue) for level, queue in self._levels.items() if level >= job.priority]
        costs = [
            other.cost
            for level, queue in levels
            for start, number, other in queue
            if level > job.priority or (start, number) < (job.virtual_start, job.id)
        ]
        return Ahead(min(len(costs), FARTHEST_COUNTED), sum(costs), is_all=len(costs) <= FARTHEST_COUNTED)

    def _behind(self, level: int) -> float:
        """Return how far the queue is behind the farm's clock."""
        now, queue = self._farm.now[level], self._levels[level]
        return now - min(now, max(queue[0][0], self._clocks[level])) if queue else 0.0

    def _oldest_level(self) -> int:
        while self._oldest[0][0] not in self._waiting:
            heappop(self._oldest)
        return self._oldest[0][1].priority
