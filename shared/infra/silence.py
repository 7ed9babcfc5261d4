"""Memory of a server's silence, so that a crowd does not wait for it in vain, one after the other."""

import time
from collections.abc import Callable
from threading import Lock

RETRY_S = 1.0


class Silence:
    """Whether a server was silent when last asked. One caller in `RETRY_S` tries it; the others need not. Thread-safe."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._until: float | None = None

    def holds(self) -> bool:
        """Whether to leave the server alone. A caller that hears False and gets an answer calls `end`, or else `begin`."""
        with self._lock:
            if self._until is None:
                return False
            now = self._clock()
            if now < self._until:
                return True
            self._until = now + RETRY_S  # for the others, while this caller tries
            return False

    def begin(self) -> None:
        """Note that the server did not answer."""
        with self._lock:
            self._until = self._clock() + RETRY_S

    def end(self) -> None:
        """Note that the server answers."""
        self._until = None
