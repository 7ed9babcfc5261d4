"""Names of checkpoints, as submissions give them: looked up once a second, however many submits come."""

import time
from collections.abc import Callable, Mapping

from sqlalchemy.orm import Session

from api.farm import checkpoints
from api.farm.checkpoints import ServedCheckpoint
from shared.errors import FarmError
from shared.settings import Settings

KNOWN_FOR_S = 1.0


class CheckpointNames:
    """The checkpoints that workers have announced, as last looked up. Thread-safe."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._known: Mapping[str, ServedCheckpoint] = {}
        self._until = 0.0

    def choose(self, session: Callable[[], Session], wanted: str | None) -> str:
        """Return the checkpoint that a submission means. Raises as `api.farm.checkpoints.choose`, never by old news."""
        if self._clock() < self._until:
            try:
                return self._chosen(wanted)
            except FarmError:
                pass  # a worker may have announced it since
        listed = checkpoints.checkpoints(session(), silent_after_s=self._settings.lease_seconds)
        self._known = {one.name: one for one in listed}
        self._until = self._clock() + KNOWN_FOR_S
        return self._chosen(wanted)

    def _chosen(self, wanted: str | None) -> str:
        return checkpoints.choose(self._known, wanted, default=self._settings.default_checkpoint)
