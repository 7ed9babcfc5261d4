"""Names of checkpoints, as submissions give them: looked up once a second, however many submits come."""

import time
from collections.abc import Callable, Sequence

from sqlalchemy.orm import Session

from shared.errors import FarmError
from shared.fleet import registry
from shared.fleet.registry import ServedCheckpoint
from shared.settings import Settings

KNOWN_FOR_S = 1.0


class CheckpointNames:
    """The checkpoints that workers have announced, as last looked up. Thread-safe."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._known: Sequence[ServedCheckpoint] = ()
        self._until = 0.0

    def choose(self, session: Callable[[], Session], wanted: str | None) -> str:
        """Return the checkpoint that a submission means. Raises `UnknownCheckpoint` or `InvalidRequest`, never by old news."""
        if self._clock() < self._until:
            try:
                return self._chosen(wanted)
            except FarmError:
                pass  # a worker may have announced it since
        self._known = registry.checkpoints(session(), silent_after_s=self._settings.lease_seconds)
        self._until = self._clock() + KNOWN_FOR_S
        return self._chosen(wanted)

    def _chosen(self, wanted: str | None) -> str:
        return registry.choose_checkpoint(self._known, wanted, default=self._settings.default_checkpoint)
