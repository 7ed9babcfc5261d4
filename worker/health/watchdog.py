"""Ends a worker that hangs: nothing interrupts a stuck device or socket. Its leases run out, or its next process takes over."""

import os
from collections.abc import Callable, Mapping

import structlog

HUNG_EXIT_STATUS = 70  # EX_SOFTWARE

log = structlog.get_logger(__name__)


class Watchdog:
    """Checks how long each part of the worker has been silent, in seconds; a part at rest returns 0."""

    def __init__(
        self,
        parts: Mapping[str, Callable[[], float]],
        *,
        hang_s: float,
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self._parts = parts
        self._hang_s = hang_s
        self._end = end

    def check(self) -> None:
        """End the process if any part hangs."""
        for part, silence_s in self._parts.items():
            if silence_s() > self._hang_s:
                log.critical("worker.hung", part=part, silence_s=round(silence_s(), 1))
                self._end(HUNG_EXIT_STATUS)
