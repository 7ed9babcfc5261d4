"""A thread that calls a function at an interval and outlives its errors."""

import random
from collections.abc import Callable
from threading import Event, Thread

import structlog

log = structlog.get_logger(__name__)


# How far an interval that processes are not to share may be from what it is on the average, as a part of it.
SPREAD = 0.25


class Periodic:
    """Calls `call` every `every_s` seconds, the first time at once.

    With `apart`, the intervals differ and begin with one: processes that start together do not go on together.
    """

    def __init__(self, name: str, call: Callable[[], object], *, every_s: float, apart: bool = False) -> None:
        self._name = name
        self._call = call
        self._every_s = every_s
        self._apart = apart
        self._has_stopped = False
        self._woken = Event()
        self._thread = Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait for the present call to end."""
        self._has_stopped = True
        self._woken.set()
        self._thread.join(timeout=5)

    def soon(self) -> None:
        """Have the next call come at once."""
        self._woken.set()

    def _run(self) -> None:
        if self._apart:
            self._wait()
        while not self._has_stopped:
            try:
                self._call()
            except Exception:  # whatever it was, the next time may do
                log.exception("periodic.crashed", act=self._name)
            self._wait()

    def _wait(self) -> None:
        self._woken.wait(self._interval_s())
        self._woken.clear()

    def _interval_s(self) -> float:
        spread = SPREAD if self._apart else 0.0
        return self._every_s * random.uniform(1 - spread, 1 + spread)  # noqa: S311 - no secret
