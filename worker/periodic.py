"""A thread that calls a function at an interval and outlives its errors."""

from collections.abc import Callable
from threading import Event, Thread

import structlog

log = structlog.get_logger(__name__)


class Periodic:
    """Calls `call` every `every_s` seconds, the first time at once."""

    def __init__(self, name: str, call: Callable[[], object], *, every_s: float) -> None:
        self._name = name
        self._call = call
        self._every_s = every_s
        self._stopped = Event()
        self._thread = Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait for the present call to end."""
        self._stopped.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while True:
            try:
                self._call()
            except Exception:  # whatever it was, the next time may do
                log.exception("periodic.crashed", act=self._name)
            if self._stopped.wait(self._every_s):
                return
