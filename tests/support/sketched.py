"""The checkpoints of a device that only sketches: their files are looked for and inspected, their weights never read."""

from collections.abc import Mapping, Sequence

from shared.files.checkpoints import CheckpointFile
from shared.vocabulary.holdings import Holding, Tier
from worker.bundle import SwapTotal
from worker.residency.source import CheckpointSource, GivenFiles

PRICE_S = 0.05


class SketchedCheckpoints:
    """A library of which one checkpoint is resident, by name alone."""

    keeps = 8

    def __init__(self, first: CheckpointFile, source: CheckpointSource | None) -> None:
        self._source = source or GivenFiles(first)
        self.resident = first.name
        self.swaps: Mapping[Tier, SwapTotal] = {}
        self.damaged: Mapping[Tier, int] = {}

    def sha256(self, name: str) -> str | None:
        del name
        return None

    def bring(self, name: str) -> None:
        self.resident = self._source.find(name).name

    def holdings(self) -> Sequence[Holding]:
        held = [
            Holding(name, one.size_bytes, Tier.RESIDENT if name == self.resident else Tier.DISK, PRICE_S)
            for name, one in self._source.files().items()
        ]
        refused = [Holding(name, 0, Tier.DISK, 0.0, None, why) for name, why in self._source.refused().items()]
        return sorted([*held, *refused], key=lambda one: one.checkpoint)
