"""Simulated device with real residency: a sketch shows the marks of the weights that were resident while it was made.

With `libraries` it replaces what makes modules of files, and computes with them; choice, library, files, memory and swaps are the
farm's own.
"""

import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from shared.files.checkpoints import CheckpointFile
from shared.files.weights import Shelves
from shared.settings import Settings
from tests.chaos.marked import MARK_BYTES
from tests.chaos.sketch import (
    AMBUSH_VARIABLE,
    NAME_VARIABLE,
    STEP_VARIABLE,
    Ambush,
    Developed,
    Draft,
    Sketch,
    SketchRunner,
)
from tests.support.ceiling import Ceiling
from worker.bundle import DeviceBundle
from worker.engine.engine import Engine
from worker.engine.preparation import Pending, PendingFuture, Preparation, PreparationSteps
from worker.engine.request import ImageSpec, Pixels
from worker.engine.snapshot import Snapshot
from worker.residency import budgets, reading
from worker.residency.residency import Opened, Residency
from worker.residency.source import CheckpointSource, GivenFiles
from worker.residency.weights import CheckpointWeights

MIXED = bytes(MARK_BYTES)  # what a picture shows whose steps were not all made with the same weights


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedDraft(Draft):
    """An image that has not begun, and holds its checkpoint."""

    opened: Opened

    def mark(self, part: str) -> bytes:
        """The mark of a part of the weights that are resident now."""
        found: bytes = getattr(self.opened.modules.loaded, part).mark
        return found


@dataclass(slots=True, kw_only=True)
class MarkedSketch(Sketch):
    """An image between steps; `text` and `unet` are the marks that it was made with so far."""

    draft: OpenedDraft
    checkpoint: Hashable
    text: bytes
    unet: bytes | None = None

    def step(self) -> None:
        """Note whose weights a step was made with."""
        now = self.draft.mark("unet")
        self.unet = now if self.unet in {None, now} else MIXED

    def snapshot(self) -> Snapshot:
        latents = np.frombuffer(self.unet or MIXED, np.uint8).astype(np.float32)
        return Snapshot(0, self.steps_done, self.steps_done, {"x": latents})

    def resume(self, snapshot: Snapshot) -> None:
        """Go on where an earlier attempt was interrupted."""
        self.steps_done = snapshot.steps_done
        self.unet = snapshot.arrays()["x"].astype(np.uint8).tobytes()


@dataclass(frozen=True, slots=True)
class MarkedPixels:
    """Pixels that are there; the first of them are the marks."""

    developed: Developed
    marks: bytes
    is_ready: bool = True

    def pixels(self) -> Pixels:
        picture = self.developed.pixels()
        picture.reshape(-1)[: len(self.marks)] = np.frombuffer(self.marks, np.uint8)
        return picture


def prepared(draft: OpenedDraft, snapshot: Snapshot | None) -> PreparationSteps[MarkedSketch]:
    """Do what a text encoder does, once its checkpoint is resident."""
    yield from ()
    sketch = MarkedSketch(draft=draft, checkpoint=draft.opened.weights, text=draft.mark("text_encoder"))
    if snapshot is not None:
        sketch.resume(snapshot)
    return sketch


class SwappingRunner:
    """The engine's runner, a sketching one behind a residency."""

    def __init__(self, residency: Residency, ambush: Ambush, step_s: float) -> None:
        self._residency = residency
        self._ambush = ambush
        self._sketching = SketchRunner(ambush, step_s)

    def price_s(self, checkpoint: Hashable) -> float:
        return self._residency.price_s(_weights(checkpoint))

    def turn_to(self, checkpoint: Hashable) -> Pending | None:
        self._ambush.pass_by("swap")
        again = self._residency.turn_to(_weights(checkpoint))
        return None if again is None else PendingFuture(again)

    def draft(self, spec: ImageSpec) -> OpenedDraft:
        self._sketching.draft(spec)
        opened = self._residency.open(spec.checkpoint)
        return OpenedDraft(spec, {spec.checkpoint: opened.weights.sha256}, opened.weights.sha256, opened=opened)

    def prepare(self, draft: OpenedDraft, snapshot: Snapshot | None = None) -> Preparation[MarkedSketch]:
        return Preparation(prepared(draft, snapshot), draft.opened.weights)

    def denoise(self, batch: Sequence[MarkedSketch]) -> None:
        self._sketching.denoise(batch)
        for image in batch:
            image.step()

    def prepare_next_pass(self, image: MarkedSketch) -> Preparation[MarkedSketch]:
        raise NotImplementedError("the suite asks for one pass only")

    def preview(self, image: MarkedSketch) -> Developed:
        return self._sketching.preview(image)

    def decode(self, image: MarkedSketch) -> MarkedPixels:
        marks = image.text + (image.unet or MIXED) + image.draft.mark("vae")
        return MarkedPixels(self._sketching.decode(image), marks)


class AmbushedResidency(Residency):
    """Dies, where there is a trap, with a checkpoint brought that nobody has been told of."""

    ambush: Ambush

    def bring(self, name: str) -> None:
        super().bring(name)
        self.ambush.pass_by("load")


def load(
    settings: Settings, first: CheckpointFile, source: CheckpointSource | None = None, _elsewhere: object = None
) -> DeviceBundle:
    """Build the engine, with the first checkpoint resident."""
    torch.set_num_threads(1)
    ambush = Ambush(Path(os.environ[AMBUSH_VARIABLE]), os.environ[NAME_VARIABLE])
    loaded, facts = reading.read(first, torch.float32)
    residency = AmbushedResidency(
        loaded, facts=facts, source=source or GivenFiles(first), ram_bytes=budgets.ram(settings.ram_bytes)
    )
    residency.ambush = ambush
    runner = SwappingRunner(residency, ambush, float(os.environ[STEP_VARIABLE]))
    return DeviceBundle(Engine(runner, limits=Ceiling(16)), residency, Shelves.at(), "sketch")


def _weights(checkpoint: Hashable) -> CheckpointWeights:
    assert isinstance(checkpoint, CheckpointWeights)
    return checkpoint
