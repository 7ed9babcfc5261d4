"""Limit on open event streams per owner."""

from collections import Counter

from shared.errors import TooManyStreams

MAX_STREAMS = 100


class StreamLimit:
    """Counts the open streams of each owner in this process. Belongs to one event loop."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    def enter(self, owner: str) -> None:
        """Count a new stream. Raises `TooManyStreams`."""
        if self._open[owner] >= MAX_STREAMS:
            raise TooManyStreams(f"This API key has {MAX_STREAMS} open event streams, the maximum; close one first.")
        self._open[owner] += 1

    def leave(self, owner: str) -> None:
        """Count an ended stream."""
        self._open[owner] -= 1
        if not self._open[owner]:
            del self._open[owner]
