"""Simulated GPU machines: each runs a few jobs at once that share its speed evenly, and may be taken away."""

from dataclasses import dataclass, field
from heapq import heappop, heappush

from tests.simulate.day import Job

SLOTS = 4


@dataclass(slots=True, eq=False)
class Machine:
    """One worker. `pace` is the cost that each of its jobs has had so far, had it been there from the start."""

    name: str
    speed: float
    since_s: float
    is_spot: bool
    is_draining: bool = False
    claims: int = 0
    changes: int = 0
    busy_s: float = 0.0
    _pace: float = 0.0
    _at_s: float = 0.0
    _running: list[tuple[float, int, float, Job]] = field(default_factory=list)

    @property
    def is_busy(self) -> bool:
        """Whether it runs anything."""
        return bool(self._running)

    @property
    def has_room(self) -> bool:
        """Whether it may claim one more."""
        return not self.is_draining and len(self._running) < SLOTS

    @property
    def running(self) -> int:
        """How many jobs it runs."""
        return len(self._running)

    def start(self, job: Job, now_s: float) -> None:
        """Run one more job."""
        self._pass_time(now_s)
        heappush(self._running, (self._pace + job.cost, job.id, self._pace, job))
        self.changes += 1

    def next_end_s(self) -> float | None:
        """When the next job ends if nothing else changes; None when idle."""
        if not self._running:
            return None
        return self._at_s + (self._running[0][0] - self._pace) * len(self._running) / self.speed

    def finish(self, now_s: float) -> Job:
        """Take the job that ends now."""
        self._pass_time(now_s)
        self.changes += 1
        return heappop(self._running)[3]

    def abandon(self, now_s: float) -> tuple[list[Job], float]:
        """Stop all that runs. Returns the jobs, and the cost that they have had for nothing."""
        self._pass_time(now_s)
        stopped, wasted = [job for *_, job in self._running], self.done(now_s)
        self._running.clear()
        self.changes += 1
        return stopped, wasted

    def done(self, now_s: float) -> float:
        """Return the cost that its running jobs have had: what is at stake."""
        self._pass_time(now_s)
        return sum(self._pace - begun for _, _, begun, _ in self._running)

    def left(self, now_s: float) -> float:
        """Return what its running jobs still cost."""
        self._pass_time(now_s)
        return sum(end - self._pace for end, *_ in self._running)

    def _pass_time(self, now_s: float) -> None:
        if self._running:
            self.busy_s += now_s - self._at_s
            self._pace += (now_s - self._at_s) * self.speed / len(self._running)
        self._at_s = now_s
