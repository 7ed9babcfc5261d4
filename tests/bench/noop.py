"""Gpu worker of `make bench-api`: the real entry point with a device that does nothing and records each job's first step."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from shared.files.checkpoints import CheckpointFile
from shared.files.weights import Shelves
from shared.settings import Settings
from tests.chaos.sketch import Ambush, Sketch, SketchRunner
from tests.support.ceiling import Ceiling
from tests.support.sketched import SketchedCheckpoints
from worker.bundle import DeviceBundle
from worker.engine.engine import Engine
from worker.residency.source import CheckpointSource

STEPS_VARIABLE = "BENCH_STEPS"


class NoopRunner(SketchRunner):
    """Writes a line `seed seconds` (since the epoch) to a file at the first step of each image."""

    def __init__(self, steps: Path) -> None:
        super().__init__(Ambush(steps.parent / "nowhere", "noop"), 0.0)
        self._steps = steps

    def denoise(self, batch: Sequence[Sketch]) -> None:
        now = time.time()
        with self._steps.open("a") as lines:
            lines.writelines(f"{image.draft.spec.seed} {now}\n" for image in batch if image.steps_done == 0)
        super().denoise(batch)


def load(
    _settings: Settings, first: CheckpointFile, source: CheckpointSource | None = None, _elsewhere: object = None
) -> DeviceBundle:
    return DeviceBundle(
        Engine(NoopRunner(Path(os.environ[STEPS_VARIABLE])), limits=Ceiling(16)),
        SketchedCheckpoints(first, source),
        Shelves.at(),
        "noop",
    )


device = ModuleType("worker.device")
device.load = load  # type: ignore[attr-defined]
sys.modules["worker.device"] = device

from worker.gpu import app  # noqa: E402

__all__ = ["app"]
