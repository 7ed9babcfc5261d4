"""Upkeep in rounds. Celery's beat asks for each through Redis, and one courier does it; unasked for too long, each does it."""

import time
from collections.abc import Callable

import structlog

from shared.errors import FarmError
from worker.periodic import Periodic

# A round that was asked for is stale by now, and so is one that nobody was asked for.
PATIENCE = 5.0

log = structlog.get_logger(__name__)


class Round:
    """An act of upkeep that is due every `every_s` seconds."""

    def __init__(self, name: str, act: Callable[[], None], *, every_s: float) -> None:
        self.name = name
        self._act = act
        self._patience_s = every_s * PATIENCE
        self._done_at = time.monotonic()
        self._periodic = Periodic(name, self._do_unasked, every_s=every_s, apart=True)

    def start(self) -> None:
        self._periodic.start()

    def stop(self) -> None:
        """Do it no more unasked."""
        self._periodic.stop()

    def do(self) -> None:
        """Do it. What could not be done waits for the next time."""
        self._done_at = time.monotonic()
        try:
            self._act()
        except FarmError as error:
            log.warning("upkeep.failed", round=self.name, **error.log_fields)

    def _do_unasked(self) -> None:
        if time.monotonic() - self._done_at > self._patience_s:
            self.do()
