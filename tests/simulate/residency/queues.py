"""The queues of all checkpoints: the farm's fair order, and what waits as workers see it."""

from collections.abc import Collection, Iterable, Sequence

from tests.simulate.residency.scene import OneImage
from tests.simulate.turns import FarmClocks, Turns
from worker.fleet.waiting import COUNTED, Waiting


class Queue(Turns):
    """The queue of one checkpoint, whose head can be seen."""

    def head(self) -> OneImage | None:
        """Return the job that a claim would take."""
        levels = [level for level, jobs in self._levels.items() if jobs]
        job = self._levels[max(levels)][0][2] if levels else None
        return job if isinstance(job, OneImage) else None


class Queues:
    """What waits in the whole farm."""

    def __init__(self, names: Iterable[str]) -> None:
        self._clocks = FarmClocks()
        self._of = {name: Queue(self._clocks) for name in names}
        self._used: dict[str, None] = {}
        self.in_order: dict[int, OneImage] = {}

    def __len__(self) -> int:
        return len(self.in_order)

    def submit(self, job: OneImage) -> None:
        """Take a job in."""
        self._of[job.checkpoint].submit(job)
        self._note(job)

    def give_back(self, job: OneImage) -> None:
        """Take a job back that was lost with its worker."""
        self._of[job.checkpoint].give_back(job)
        self._note(job)

    def claim(self, names: Collection[str]) -> OneImage | None:
        """Take the first job of some checkpoints by priority and turn."""
        heads = [head for name in names if (head := self._of[name].head())]
        if not heads:
            return None
        name = min(heads, key=lambda job: (-job.priority, job.virtual_start, job.id)).checkpoint
        claimed = self._of[name].claim()
        assert isinstance(claimed, OneImage)
        del self.in_order[claimed.id]
        if not len(self._of[name]):
            del self._used[name]
        return claimed

    def count(self, name: str) -> int:
        """Return how many jobs of a checkpoint wait."""
        return len(self._of[name])

    def names(self) -> Sequence[str]:
        """Return the checkpoints that have work."""
        return list(self._used)

    def head(self, name: str) -> OneImage | None:
        """Return the first job of a checkpoint."""
        return self._of[name].head()

    def waiting(self, now_s: float) -> Sequence[Waiting]:
        """Return what the database would say."""
        return [self._waiting(name, now_s) for name in self._used]

    def _waiting(self, name: str, now_s: float) -> Waiting:
        queue = self._of[name]
        head, count = queue.head(), len(queue)
        assert head
        lag = head.virtual_start - self._clocks.now[head.priority]
        seen = min(count, COUNTED)
        return Waiting(name, head.priority, lag, now_s - head.at_s, float(seen), seen, is_all=count < COUNTED)

    def _note(self, job: OneImage) -> None:
        self.in_order[job.id] = job
        self._used[job.checkpoint] = None
