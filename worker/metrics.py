"""Prometheus metrics of a gpu worker: engine and leases are read at each scrape, attempts are counted as they end."""

from collections.abc import Callable, Iterator, Mapping, Sized

from prometheus_client.metrics_core import Metric as Family

from shared.infra import metrics
from shared.infra.metrics import Board
from worker.engine.pace import Pace


class WorkerMetrics:
    """The engine's ticks, steps and cost, the jobs in flight, the device's memory, and the attempts that ended."""

    def __init__(
        self,
        checkpoint: str,
        *,
        pace: Callable[[], Pace],
        running: Callable[[], Sized],
        memory: Callable[[], Mapping[str, float]],
    ) -> None:
        self._checkpoint = checkpoint
        self._pace = pace
        self._running = running
        self._memory = memory
        self.board = Board()
        self._ended = self.board.counter(metrics.ATTEMPTS_ENDED)
        self._images = self.board.counter(metrics.IMAGES)
        self.board.read(self.families)

    def ended(self, outcome: str, *, code: str = "", images: int = 0) -> None:
        """Count an attempt that ended, and the pictures that it gave."""
        self._ended.labels(self._checkpoint, outcome, code).inc()
        self._images.labels(self._checkpoint).inc(images)

    def families(self) -> Iterator[Family]:
        """Yield the metrics that are read at each scrape."""
        pace, mine = self._pace(), (self._checkpoint,)
        yield metrics.TICKS.of([(mine, pace.ticks)])
        yield metrics.BUSY_S.of([(mine, pace.busy_s)])
        yield metrics.IMAGE_STEPS.of([(mine, pace.image_steps)])
        yield metrics.COST_DONE.of([(mine, pace.cost)])
        yield metrics.JOBS_IN_FLIGHT.of([(mine, len(self._running()))])
        yield metrics.DEVICE_MEMORY.of(((*mine, kind), size) for kind, size in self._memory().items())
