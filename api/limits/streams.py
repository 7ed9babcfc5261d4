"""How many event streams each owner holds open: they are cheap, not free."""

from collections import Counter

from shared.errors import TooManyStreams

MAX_STREAMS = 100


class StreamLimit:
    """How many streams each owner holds open in this process. Lives on one event loop."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    def enter(self, owner: str) -> None:
        """Count one more, or raise `TooManyStreams`."""
        if self._open[owner] >= MAX_STREAMS:
            raise TooManyStreams(f"This API key follows {MAX_STREAMS} jobs already; end one stream first.")
        self._open[owner] += 1

    def leave(self, owner: str) -> None:
        """Count one less."""
        self._open[owner] -= 1
        if not self._open[owner]:
            del self._open[owner]
