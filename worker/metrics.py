"""Prometheus metrics of a gpu worker: engine and leases are read at each scrape, attempts are counted as they end."""

from collections.abc import Callable, Iterator, Mapping, Sized

from prometheus_client.metrics_core import Metric as Family

from shared.fleet.holdings import Tier
from shared.infra import metrics
from shared.infra.metrics import Board
from worker.engine.pace import Pace

COPIED = (Tier.VRAM, Tier.RAM, Tier.DISK)  # where copies are compared with what was read or pushed


class WorkerMetrics:
    """The engine's ticks, steps and cost, swaps and what is resident, the jobs in flight, the device's memory, ended attempts.

    `swaps` tells for each tier how many checkpoints have become resident from there, and in how many seconds altogether;
    `damaged`, how many copies of weights were found damaged there.
    """

    def __init__(
        self,
        *,
        pace: Callable[[], Pace],
        running: Callable[[], Sized],
        memory: Callable[[], Mapping[str, float]],
        swaps: Callable[[], Mapping[Tier, tuple[int, float]]],
        damaged: Callable[[], Mapping[Tier, int]],
        resident: Callable[[], str],
    ) -> None:
        self._pace = pace
        self._running = running
        self._memory = memory
        self._swaps = swaps
        self._damaged = damaged
        self._resident = resident
        self.board = Board()
        self._ended = self.board.counter(metrics.ATTEMPTS_ENDED)
        self._images = self.board.counter(metrics.IMAGES)
        self.board.read(self.families)

    def ended(self, checkpoint: str, outcome: str, *, code: str = "", images: int = 0) -> None:
        """Count an attempt that ended, and the pictures that it gave, for the checkpoint of its job."""
        self._ended.labels(checkpoint, outcome, code).inc()
        self._images.labels(checkpoint).inc(images)

    def families(self) -> Iterator[Family]:
        """Yield the metrics that are read at each scrape."""
        pace, swaps, damaged = self._pace(), self._swaps(), self._damaged()
        yield metrics.TICKS.of([((), pace.ticks)])
        yield metrics.BUSY_S.of([((), pace.busy_s)])
        yield metrics.IMAGE_STEPS.of([((), pace.image_steps)])
        yield metrics.COST_DONE.of([((), pace.cost)])
        yield metrics.JOBS_IN_FLIGHT.of([((), len(self._running()))])
        yield metrics.SWAPS.of(((tier,), times) for tier, (times, _) in swaps.items())
        yield metrics.SWAP_S.of(((tier,), took_s) for tier, (_, took_s) in swaps.items())
        # From zero on, or Prometheus would not see the first one as an increase.
        yield metrics.WEIGHTS_DAMAGED.of(((tier,), damaged.get(tier, 0)) for tier in COPIED)
        yield metrics.RESIDENT.of([((self._resident(),), 1)])
        yield metrics.DEVICE_MEMORY.of(((kind,), size) for kind, size in self._memory().items())
