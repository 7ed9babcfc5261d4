"""The checkpoints that a worker has open: it claims their jobs and no others'."""

from collections.abc import Sequence
from itertools import count
from threading import Lock


class OpenCheckpoints:
    """The open checkpoints of one worker, first the one that it turned to last. Thread-safe."""

    def __init__(self, *names: str) -> None:
        self._names = names
        self._doomed: tuple[str, ...] = ()
        self._turns = count()
        self._lock = Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """Their names."""
        return self._names

    def open(self, names: Sequence[str]) -> None:
        """Claim jobs of these from now on. What runs of others goes on."""
        with self._lock:
            self._names = tuple(names)

    def close(self, *names: str) -> None:
        """Claim no more jobs of these."""
        with self._lock:
            self._names = tuple(one for one in self._names if one not in names)

    def doom(self, names: Sequence[str]) -> None:
        """Claim jobs of these, too: nobody can load them, and their jobs are to fail with the reason."""
        self._doomed = tuple(names)

    def in_turn(self) -> tuple[str, ...]:
        """Return them in the order in which to look for the next job; each comes first as often as the others."""
        with self._lock:
            at = next(self._turns) % max(1, len(self._names))
            return self._doomed + self._names[at:] + self._names[:at]
