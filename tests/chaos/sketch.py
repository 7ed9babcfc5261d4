"""Simulated device of the chaos suite: pictures from the seed alone, in a moment and without torch.

It replaces `worker.device` and nothing else: claim, leases, engine, upload and success are the farm's own. An `Ambush` kills its
worker at a chosen moment, and a prompt that contains POISON always kills the worker in the middle of a step.
"""

import os
import signal
import time
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shared.files.checkpoints import CheckpointFile
from shared.files.weights import Shelves
from shared.settings import Settings
from tests.support.ceiling import Ceiling
from tests.support.sketched import SketchedCheckpoints
from worker.bundle import DeviceBundle
from worker.engine.engine import Engine
from worker.engine.preparation import Preparation, PreparationSteps
from worker.engine.request import ImageSpec, Pixels
from worker.engine.snapshot import Snapshot
from worker.residency.source import CheckpointSource

POISON = "poison"
AMBUSH_VARIABLE, NAME_VARIABLE, STEP_VARIABLE = "CHAOS_AMBUSH", "CHAOS_NAME", "CHAOS_STEP_SECONDS"


@dataclass(frozen=True, slots=True)
class Draft:
    """An image that has not begun."""

    spec: ImageSpec

    sha256s: Mapping[str, str | None] = field(default_factory=dict)
    weights: str = "sketch"

    @property
    def steps_total(self) -> int:
        return self.spec.passes[0].steps


@dataclass(slots=True)
class Sketch:
    """An image between steps."""

    draft: Draft
    steps_done: int = 0
    bucket: str = "sketch"
    checkpoint: Hashable = "sketch"
    samples: int = 1
    cost: float = 1.0

    @property
    def is_pass_over(self) -> bool:
        return self.is_over

    @property
    def is_over(self) -> bool:
        return self.steps_done >= self.draft.steps_total

    def snapshot(self) -> Snapshot:
        return Snapshot(0, self.steps_done, self.steps_done, {"x": np.zeros(1, np.float32)})


@dataclass(frozen=True, slots=True)
class Developed:
    """Pixels that are there."""

    seed: int
    size: tuple[int, int]
    is_ready: bool = True

    def pixels(self) -> Pixels:
        height, width = self.size
        return np.random.default_rng(self.seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def no_way(sketch: Sketch) -> PreparationSteps[Sketch]:
    """Nothing is done before the first step."""
    yield from ()
    return sketch


class Ambush:
    """A trap in a folder: whoever first takes away the file of a moment dies there, and leaves its name in the file's."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name

    def pass_by(self, moment: str) -> None:
        with suppress(OSError):
            (self._folder / moment).rename(self._folder / f"{moment}.{self._name}")
            os.kill(os.getpid(), signal.SIGKILL)


class SketchRunner:
    """The engine's runner. One step of any batch takes `step_s` seconds."""

    def __init__(self, ambush: Ambush, step_s: float) -> None:
        self._ambush = ambush
        self._step_s = step_s

    def price_s(self, checkpoint: Hashable) -> float:
        del checkpoint
        return 0.0

    def turn_to(self, checkpoint: Hashable) -> None:
        """Nothing is resident in a sketch."""

    def draft(self, spec: ImageSpec) -> Draft:
        self._ambush.pass_by("claimed")
        return Draft(spec)

    def prepare(self, draft: Draft, snapshot: Snapshot | None = None) -> Preparation[Sketch]:
        return Preparation(no_way(Sketch(draft, snapshot.steps_done if snapshot else 0)), "sketch")

    def denoise(self, batch: Sequence[Sketch]) -> None:
        time.sleep(self._step_s / 2)
        self._ambush.pass_by("step")
        if any(POISON in image.draft.spec.passes[0].prompt for image in batch):
            os._exit(1)
        time.sleep(self._step_s / 2)
        for image in batch:
            image.steps_done += 1

    def prepare_next_pass(self, image: Sketch) -> Preparation[Sketch]:
        raise NotImplementedError("the suite asks for one pass only")

    def preview(self, image: Sketch) -> Developed:
        return Developed(image.draft.spec.seed, (8, 8))

    def decode(self, image: Sketch) -> Developed:
        wanted = image.draft.spec.passes[0]
        return Developed(image.draft.spec.seed, (wanted.height, wanted.width))


def load(
    _settings: Settings, first: CheckpointFile, source: CheckpointSource | None = None, _elsewhere: object = None
) -> DeviceBundle:
    """Build the engine; the checkpoint's weights are not read."""
    ambush = Ambush(Path(os.environ[AMBUSH_VARIABLE]), os.environ[NAME_VARIABLE])
    runner = SketchRunner(ambush, float(os.environ[STEP_VARIABLE]))
    return DeviceBundle(Engine(runner, limits=Ceiling(16)), SketchedCheckpoints(first, source), Shelves.at(), "sketch")
