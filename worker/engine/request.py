"""Vocabulary of the engine: the spec of an image, its request with progress and a future for the pixels. No torch."""

from collections.abc import Hashable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shared.vocabulary.params import Lora, MaskFill, Upscaler
from shared.vocabulary.samplers import Sampler, Schedule
from worker.engine.snapshot import Snapshot

Pixels = NDArray[np.uint8]  # (height, width, 3)
Mask = NDArray[np.float32]  # (height, width), 1 where the picture is painted anew


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Spec of one walk from noise to a picture. Sizes are in pixels.

    The first pass starts from pure noise, or from the image's `Start`; a later pass (hires fix) starts from the result of the
    pass before, upscaled to its size by the `upscaler`. From a picture, only the `last` of the `steps` are made; None means all.
    Without a `checkpoint` of its own it is walked with the image's.
    """

    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    sampler: Sampler
    schedule: Schedule
    last: int | None = None
    checkpoint: str | None = None
    loras: tuple[Lora, ...] = ()
    upscaler: Upscaler | None = None

    @property
    def is_enlarged_in_pixels(self) -> bool:
        """Whether the pass before is decoded, upscaled in pixels and encoded again."""
        return self.upscaler is Upscaler.LANCZOS


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Start:
    """Picture that an image-to-image pass starts from, at the size of the first pass; only where the mask is 1 it changes."""

    pixels: Pixels
    mask: Mask | None = None
    fill: MaskFill = MaskFill.ORIGINAL


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpec:
    """Everything that decides one image's pixels. `checkpoint` is its name; "" is the one that the engine began with."""

    passes: tuple[Pass, ...]
    seed: int
    checkpoint: str = ""
    variation_seed: int = 0
    variation_strength: float = 0.0
    clip_skip: int = 1
    vae: str | None = None
    start: Start | None = None


class Draft(Protocol):
    """A runner's own draft of an image; the engine reads only this much."""

    @property
    def steps_total(self) -> int:
        """UNet calls of the image, over all its passes."""

    @property
    def sha256s(self) -> Mapping[str, str | None]:
        """The digests of its checkpoints' files, by name; None for one that has no file."""

    @property
    def weights(self) -> str:
        """What tells the weights of all its passes from others."""


class ActiveImage(Protocol):
    """A runner's own state of an image between steps; the engine reads only this much."""

    @property
    def checkpoint(self) -> Hashable:
        """What must be resident for the next step."""

    @property
    def bucket(self) -> Hashable:
        """Key of the images that may share a UNet call."""

    @property
    def samples(self) -> int:
        """Rows of the UNet's batch that the image takes: two with guidance, else one; more with AND."""

    @property
    def cost(self) -> float:
        """Cost of one step of the image, in units that compare across buckets."""

    @property
    def steps_done(self) -> int:
        """UNet calls made for this image, over all its passes."""

    @property
    def is_pass_over(self) -> bool:
        """Whether the present pass has made its last step."""

    @property
    def is_over(self) -> bool:
        """Whether the last pass has made its last step, so that only decoding is left."""

    def snapshot(self) -> Snapshot:
        """Return references to the image's state. Copies nothing: the engine calls it after every step."""


class PendingPixels(Protocol):
    """Pixels that the device has not finished; a future without threads."""

    @property
    def is_ready(self) -> bool:
        """Whether `pixels` would return without waiting for the device."""

    def pixels(self) -> Pixels:
        """Return the pixels, (height, width, 3) uint8; raise `RenderFailed` when the numbers have blown up."""


class Request:
    """A submitted image. Any thread may wait for its result or cancel it; only the engine's thread writes its progress.

    `snapshot` is the image after its last step, at first the one to resume from; None before the first step. `sha256s` and
    `weights` are its draft's.
    """

    def __init__(self, spec: ImageSpec, snapshot: Snapshot | None = None) -> None:
        self.spec = spec
        self.snapshot = snapshot
        self.steps_total = 0  # until the draft has counted them
        self.steps_done = snapshot.steps_done if snapshot else 0
        self.sha256s: Mapping[str, str | None] = {}
        self.weights = ""
        self.is_canceled = False
        self.wants_preview = False
        self.preview: PendingPixels | None = None
        self._future: Future[Pixels] = Future()

    @property
    def is_done(self) -> bool:
        """Whether `result` would return or raise at once."""
        return self._future.done()

    def begin(self, draft: Draft, snapshot: Snapshot | None) -> None:
        """Take over what a draft says, and where the image goes on."""
        self.steps_total, self.sha256s, self.weights = draft.steps_total, draft.sha256s, draft.weights
        if snapshot is not None:
            self.snapshot, self.steps_done = snapshot, snapshot.steps_done

    def cancel(self) -> None:
        """Ask the engine to drop the request: `result` raises `Canceled` from the next step boundary on."""
        self.is_canceled = True

    def take_preview(self) -> Pixels | None:
        """Return the preview made since the last call, None while there is none, and ask the engine for the next."""
        pending = self.preview
        if pending is not None and not pending.is_ready:
            return None
        self.preview = None
        self.wants_preview = True
        return pending.pixels() if pending else None

    def result(self, timeout: float | None) -> Pixels:
        """Wait for the pixels, (height, width, 3) uint8.

        Raises `Canceled`, `RenderFailed` or one of its kinds, or `TimeoutError` after `timeout` seconds.
        """
        return self._future.result(timeout)

    def finish(self, pixels: Pixels) -> None:
        """Set the result, unless there is one."""
        if not self.is_done:
            self._future.set_result(pixels)

    def fail(self, error: Exception) -> None:
        """Set an error as the result, unless there is one."""
        if not self.is_done:
            self._future.set_exception(error)
