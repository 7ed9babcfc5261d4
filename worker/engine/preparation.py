"""Preparation of an image on the device (encode, upscale) as a cooperative generator, so that a tick never blocks on it.

`draft.py` is the host's share of the work, done at once on the submitting thread. This is the device's share, advanced by the
engine's thread between UNet calls: the generator yields each piece of work that it would have to wait for, and is resumed when
that is done. It says, too, when it needs the weights of another checkpoint; it is resumed once those are resident.
"""

from collections.abc import Generator, Hashable
from concurrent import futures
from typing import Any, Generic, Protocol, TypeVar

R_co = TypeVar("R_co", covariant=True)


class Pending(Protocol):
    """Work that the device, or another thread, has not finished."""

    @property
    def is_ready(self) -> bool:
        """Whether `wait` would return at once."""

    def wait(self) -> None:
        """Block until the work is done."""


class Turn:
    """Says that what follows needs the weights of a checkpoint."""

    def __init__(self, checkpoint: Hashable) -> None:
        self.checkpoint = checkpoint


PreparationSteps = Generator[Pending | Turn, None, R_co]


class Preparation(Generic[R_co]):
    """Drives the generator of one image. `checkpoint` is what must be resident when it is polled next.

    For example one that encodes the picture to start from:

        def steps():
            encoding = Encoding(vae, pixels)  # launched, not waited for
            yield encoding  # `poll` returns None until the device has encoded it
            return Latents(...)  # `poll` returns this
    """

    def __init__(self, steps: PreparationSteps[R_co], checkpoint: Hashable = None) -> None:
        self.checkpoint = checkpoint
        self._steps = steps
        self._pending: Pending | None = None

    def poll(self) -> R_co | None:
        """Advance as far as it goes without waiting; return the image if it is prepared, else None. Raises what a step raised."""
        while self._pending is None or self._pending.is_ready:
            try:
                step = next(self._steps)
            except StopIteration as end:
                image: R_co = end.value
                return image
            self._pending = None if isinstance(step, Turn) else step
            if isinstance(step, Turn) and step.checkpoint != self.checkpoint:
                self.checkpoint = step.checkpoint
                return None
        return None

    def wait(self) -> None:
        """Block until the pending piece of work is done; the next `poll` goes on behind it."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None

    def result(self) -> R_co:
        """Block until the image is prepared."""
        while (image := self.poll()) is None:
            self.wait()
        return image


class PendingFuture:
    """A future of another thread as `Pending`."""

    def __init__(self, future: "futures.Future[Any]") -> None:
        self._future = future

    @property
    def is_ready(self) -> bool:
        """Whether it has a result or an error."""
        return self._future.done()

    def wait(self) -> None:
        """Block until it has; raises nothing, an error is in the future's result."""
        futures.wait([self._future])
