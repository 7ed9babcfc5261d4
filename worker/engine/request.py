"""One image in the engine: what is asked for, how far it is, and a future for its pixels. No torch."""

from collections.abc import Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shared.params import Sampler, Schedule

Pixels = NDArray[np.uint8]  # (height, width, 3)


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """Everything that decides one image's pixels. Sizes are in pixels."""

    prompt: str
    negative_prompt: str
    steps: int
    guidance_scale: float
    width: int
    height: int
    seed: int
    sampler: Sampler
    schedule: Schedule


class Denoising(Protocol):
    """What a runner keeps of one image between steps; the engine sees only this much."""

    @property
    def bucket(self) -> Hashable:
        """Images of one bucket may share a UNet call."""

    @property
    def samples(self) -> int:
        """How many rows of the UNet's batch the image takes: two with guidance, else one."""

    @property
    def cost(self) -> float:
        """What one step of the image costs, in units that compare across buckets."""

    @property
    def steps_done(self) -> int:
        """UNet calls made for this image."""

    @property
    def steps_total(self) -> int:
        """UNet calls that the image needs."""


class Request:
    """A submitted image. Any thread may ask for its result or cancel it; only the engine moves it on."""

    def __init__(self, spec: ImageSpec) -> None:
        self.spec = spec
        self.denoising: Denoising | None = None
        self.is_canceled = False
        self._future: Future[Pixels] = Future()

    @property
    def steps_done(self) -> int:
        """Denoising steps done so far."""
        return self.denoising.steps_done if self.denoising else 0

    @property
    def steps_total(self) -> int:
        """Denoising steps in all; the steps asked for until the sampler has counted its own."""
        return self.denoising.steps_total if self.denoising else self.spec.steps

    @property
    def is_done(self) -> bool:
        """Whether the result, or an error, is there."""
        return self._future.done()

    def cancel(self) -> None:
        """Withdraw the request: its result becomes `Canceled` at the next step boundary."""
        self.is_canceled = True

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
