"""An image on its way to the first step of a pass: encoded, or enlarged, before it may join a batch.

The way is a generator that yields whatever it would have to wait for. So a tick can leave it there and go on with other images.
"""

from collections.abc import Generator
from concurrent import futures
from typing import Any, Generic, Protocol, TypeVar

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Pending(Protocol):
    """What the device, or another thread, is still doing."""

    @property
    def is_ready(self) -> bool:
        """Whether it is done."""

    def wait(self) -> None:
        """Wait until it is."""


PreparationSteps = Generator[Pending, None, R_co]


class Preparation(Generic[R_co]):
    """Leads an image along its way."""

    def __init__(self, way: PreparationSteps[R_co]) -> None:
        self._way = way
        self._awaited: Pending | None = None

    def get(self) -> R_co | None:
        """Return the image if it has arrived; else lead it as far as that goes without waiting.

        Raises what befell it on its way.
        """
        while self._awaited is None or self._awaited.is_ready:
            try:
                self._awaited = next(self._way)
            except StopIteration as end:
                image: R_co = end.value
                return image
        return None

    def wait(self) -> None:
        """Wait for what it stopped at, and for nothing that comes after."""
        if self._awaited is not None:
            self._awaited.wait()
            self._awaited = None


def completed(arrival: Preparation[R]) -> R:
    """Wait for an image."""
    while (image := arrival.get()) is None:
        arrival.wait()
    return image


class Task:
    """What another thread computes."""

    def __init__(self, future: "futures.Future[Any]") -> None:
        self._future = future

    @property
    def is_ready(self) -> bool:
        """Whether it is done, or has failed."""
        return self._future.done()

    def wait(self) -> None:
        """Wait until it is; an error shows in the future's result."""
        futures.wait([self._future])
