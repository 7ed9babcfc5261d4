"""One image in the engine: what is asked for, how far it is, and a future for its pixels. No torch."""

from collections.abc import Hashable
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
    """One walk from noise to a picture. Sizes are in pixels.

    The first pass starts from pure noise, or from the image's `Start`; a later one starts from the result of the pass before,
    brought to its size by the `upscaler`. `last` is how many of the `steps` are made then, the last ones; None means all.
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
    loras: tuple[Lora, ...] = ()
    upscaler: Upscaler | None = None

    @property
    def is_enlarged_in_pixels(self) -> bool:
        """Whether the result of the pass before is decoded, enlarged and encoded again."""
        return self.upscaler is Upscaler.LANCZOS


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Start:
    """What an image-to-image pass starts from, at the size of the first pass. With a mask only its ones change."""

    pixels: Pixels
    mask: Mask | None = None
    fill: MaskFill = MaskFill.ORIGINAL


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpec:
    """Everything that decides one image's pixels."""

    passes: tuple[Pass, ...]
    seed: int
    variation_seed: int = 0
    variation_strength: float = 0.0
    clip_skip: int = 1
    vae: str | None = None
    start: Start | None = None


class Draft(Protocol):
    """An image made ready as far as that goes without the device."""

    @property
    def steps_total(self) -> int:
        """UNet calls that the image will need, over all its passes."""


class ActiveImage(Protocol):
    """What a runner keeps of one image between steps; the engine sees only this much."""

    @property
    def bucket(self) -> Hashable:
        """Images of one bucket may share a UNet call."""

    @property
    def samples(self) -> int:
        """How many rows of the UNet's batch the image takes: two with guidance, else one; more with AND."""

    @property
    def cost(self) -> float:
        """What one step of the image costs, in units that compare across buckets."""

    @property
    def steps_done(self) -> int:
        """UNet calls made for this image, over all its passes."""

    @property
    def is_pass_over(self) -> bool:
        """Whether the present pass has made its last step."""

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left but to decode."""

    def snapshot(self) -> Snapshot:
        """Say where the image stands. Costs next to nothing: it is asked for after every step."""


class Developing(Protocol):
    """Pixels on their way from the device."""

    @property
    def is_ready(self) -> bool:
        """Whether `pixels` would return without waiting for the device."""

    def pixels(self) -> Pixels:
        """Return the pixels, (height, width, 3) uint8; raise `RenderFailed` when the numbers have blown up."""


class Request:
    """A submitted image. Any thread may ask for its result or cancel it; only the engine moves it on.

    `snapshot` is where the image stood after its last step, or where it is to go on; None before it has begun.
    """

    def __init__(self, spec: ImageSpec, snapshot: Snapshot | None = None) -> None:
        self.spec = spec
        self.snapshot = snapshot
        self.steps_total = 0  # until the samplers have counted theirs
        self.steps_done = snapshot.steps_done if snapshot else 0
        self.is_canceled = False
        self.wants_preview = False
        self.preview: Developing | None = None
        self._future: Future[Pixels] = Future()

    @property
    def is_done(self) -> bool:
        """Whether the result, or an error, is there."""
        return self._future.done()

    def cancel(self) -> None:
        """Withdraw the request: its result becomes `Canceled` at the next step boundary."""
        self.is_canceled = True

    def take_preview(self) -> Pixels | None:
        """Return the picture as it is taking shape, if one has been made since the last time, and ask for the next."""
        developing = self.preview
        if developing is not None and not developing.is_ready:
            return None
        self.preview = None
        self.wants_preview = True
        return developing.pixels() if developing else None

    def result(self, timeout: float | None) -> Pixels:
        """Wait for the pixels, (height, width, 3) uint8.

        Raises `Canceled`, `RenderFailed` or one of its kinds, or `TimeoutError` after `timeout` seconds.
        """
        return self._future.result(timeout)

    def finish(self, pixels: Pixels) -> None:
        """Hand the pixels to whoever waits."""
        if not self.is_done:
            self._future.set_result(pixels)

    def fail(self, error: Exception) -> None:
        """Hand an error to whoever waits."""
        if not self.is_done:
            self._future.set_exception(error)
