"""The simplest limits there are, for tests of what keeps to them."""

from collections.abc import Hashable


class Ceiling:
    """One limit for every bucket, halved for a bucket whose call ran out of memory."""

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._shrunk: dict[Hashable, int] = {}

    def limit(self, bucket: Hashable) -> int:
        return self._shrunk.get(bucket, self._samples)

    def shrink(self, bucket: Hashable, samples: int) -> None:
        self._shrunk[bucket] = max(1, samples // 2)

    def fitted(self, bucket: Hashable, samples: int) -> None:
        """Nothing to learn."""
