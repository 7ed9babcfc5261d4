"""Retries with growing pauses."""

from collections.abc import Callable, Iterator
from itertools import repeat
from typing import TypeVar

from shared.errors import FarmError

T = TypeVar("T")
E = TypeVar("E", bound=FarmError)


def retry(call: Callable[[], T], *, on: type[E], wait: Callable[[E, float], None]) -> T:
    """Repeat a call until it does not raise `on`. `wait` gets the error and how many seconds to pause; it raises to give up."""
    for pause_s in pauses():
        try:
            return call()
        except on as error:
            wait(error, pause_s)
    raise AssertionError("pauses never end")


def pauses() -> Iterator[float]:
    """Yield how long to wait before each further try, in seconds."""
    yield from (0.5, 1.0, 2.0)
    yield from repeat(4.0)
