"""A thread that does one thing again and again, and lives on whatever becomes of it once."""

from collections.abc import Callable
from threading import Event, Thread

import structlog

log = structlog.get_logger(__name__)


class Periodic:
    """Calls `act` every `every_s` seconds, the first time at once."""

    def __init__(self, name: str, act: Callable[[], object], *, every_s: float) -> None:
        self._name = name
        self._act = act
        self._every_s = every_s
        self._stopped = Event()
        self._thread = Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait for the present call to end."""
        self._stopped.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while True:
            try:
                self._act()
            except Exception:  # whatever it was, the next time may do
                log.exception("periodic.crashed", act=self._name)
            if self._stopped.wait(self._every_s):
                return
