"""Host memory: the copies in RAM, and which checkpoints images in flight have opened. Thread-safe.

What is opened is never dropped to make room; whoever needs room waits until images end, for a while.
"""

import time
from collections.abc import Callable, Collection, Mapping
from threading import Condition

from torch import Tensor

from shared.errors import OutOfMemory
from worker.residency.copies import Copies
from worker.residency.weights import CheckpointWeights


class HostMemory:
    """At most `max_bytes` of weights; `room_s` is how long one waits for room."""

    def __init__(self, max_bytes: int, *, room_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.changed = Condition()
        self._ram = Copies(max_bytes)
        self._opened: dict[str, tuple[CheckpointWeights, int]] = {}
        self._room_s = room_s
        self._clock = clock

    def __contains__(self, weights: CheckpointWeights) -> bool:
        return weights in self._ram

    def __len__(self) -> int:
        return len(self._ram)

    @property
    def max_bytes(self) -> int:
        """The bound."""
        return self._ram.max_bytes

    @property
    def size_bytes(self) -> int:
        """Bytes of all parts."""
        return self._ram.size_bytes

    def flat(self, digest: str) -> Tensor | None:
        """Return the memory of a part; None if it is not here."""
        return self._ram.flat(digest)

    def lacking(self, weights: CheckpointWeights) -> list[str]:
        """Return the parts of a checkpoint that are not here."""
        return self._ram.lacking(weights)

    def put(self, weights: CheckpointWeights, flats: Mapping[str, Tensor]) -> None:
        """Keep a checkpoint whose parts were made room for."""
        with self.changed:
            self._ram.put(weights, flats)

    def use(self, weights: CheckpointWeights) -> None:
        """Note that a checkpoint is used now."""
        with self.changed:
            self._ram.use(weights)

    def drop(self, weights: CheckpointWeights) -> None:
        """Forget a checkpoint."""
        with self.changed:
            self._ram.drop(weights)

    def drop_parts(self, digests: Collection[str]) -> None:
        """Forget every checkpoint that has one of these parts."""
        with self.changed:
            self._ram.drop_parts(digests)

    def open(self, weights: CheckpointWeights) -> None:
        """Note that an image needs a checkpoint."""
        with self.changed:
            _, number = self._opened.get(weights.key, (weights, 0))
            self._opened[weights.key] = weights, number + 1
            self._ram.use(weights)

    def let_go(self, key: str) -> None:
        """Note that an image needs a checkpoint no more."""
        with self.changed:
            weights, number = self._opened.pop(key)
            if number > 1:
                self._opened[key] = weights, number - 1
            self.changed.notify_all()

    def is_opened(self, weights: CheckpointWeights) -> bool:
        """Whether an image needs a checkpoint."""
        return weights.key in self._opened

    def rivals(self, weights: CheckpointWeights) -> list[CheckpointWeights]:
        """Return what is opened for the same modules beside these weights."""
        with self.changed:
            opened = [one for one, _ in self._opened.values()]
        return [one for one in opened if one.architecture == weights.architecture and one.key != weights.key]

    def architectures(self) -> set[str]:
        """Return the architectures that images need."""
        with self.changed:
            return {one.architecture for one, _ in self._opened.values()}

    def has_room(self, size_bytes: int) -> bool:
        """Make room for so many bytes, if that is possible now."""
        with self.changed:
            return self._ram.make_room(size_bytes, keep=self.is_opened)

    def make_room(self, name: str, size_bytes: int) -> None:
        """Wait until so many bytes of a checkpoint have room. Raises `OutOfMemory`."""
        can_ever = size_bytes <= self.max_bytes
        if not (can_ever and self.wait_until(lambda: self.has_room(size_bytes))):
            raise OutOfMemory(
                f"{name} needs {size_bytes / 1e9:.2f} GB of this worker's memory for checkpoints, which holds"
                f" {self.max_bytes / 1e9:.2f} GB (FARM_RAM_BYTES){' and is in use' if can_ever else ''}."
            )

    def wait_until(self, is_so: Callable[[], bool]) -> bool:
        """Wait for what images that end may bring about; False after `room_s`."""
        with self.changed:
            return self.changed.wait_for(is_so, self._room_s)
