"""Who is in the next UNet call. Pure policy over plain values; no torch.

Requests of one bucket may share a call. Within a bucket the oldest go first, so what has begun ends soon. Across buckets each
tick goes to the one that has had the least service, counted in cost (fair queuing, Demers et al. 1989); a bucket that was empty
starts level with the others, so nobody can save up service while away, and nobody starves.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

R = TypeVar("R", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Place(Generic[R]):
    """A request's place in its bucket: what it takes of a call, in samples, and what a step of it costs."""

    request: R
    samples: int
    cost: float


@dataclass(slots=True)
class Bucket(Generic[R]):
    """Requests that may share a call, oldest first, and the service they have had together."""

    served: float
    places: dict[R, Place[R]] = field(default_factory=dict)


class BatchScheduler(Generic[R]):
    """Chooses batches of at most `max_samples` samples; a bucket whose calls ran out of memory has a smaller limit."""

    def __init__(self, max_samples: int) -> None:
        self._max_samples = max_samples
        self._limits: dict[Hashable, int] = {}
        self._buckets: dict[Hashable, Bucket[R]] = {}
        self._homes: dict[R, Hashable] = {}

    def __len__(self) -> int:
        return len(self._homes)

    def requests(self) -> list[R]:
        """Return every request that is scheduled."""
        return list(self._homes)

    def add(self, request: R, bucket: Hashable, *, samples: int, cost: float) -> None:
        """Let a request take part from the next tick on."""
        if bucket not in self._buckets:
            level = min((other.served for other in self._buckets.values()), default=0.0)
            self._buckets[bucket] = Bucket(served=level)
        self._buckets[bucket].places[request] = Place(request, samples, cost)
        self._homes[request] = bucket

    def remove(self, request: R) -> None:
        """Take a request out; a bucket that empties is forgotten."""
        home = self._homes.pop(request)
        bucket = self._buckets[home]
        del bucket.places[request]
        if not bucket.places:
            del self._buckets[home]

    def schedule(self) -> list[R]:
        """Choose the next batch and charge its bucket for it. Empty only when nothing is scheduled."""
        if not self._buckets:
            return []
        key, bucket = min(self._buckets.items(), key=lambda entry: entry[1].served)
        batch = _fitting(bucket, self._limits.get(key, self._max_samples))
        bucket.served += sum(place.cost for place in batch)
        return [place.request for place in batch]

    def shrink(self, batch: list[R]) -> bool:
        """Halve the limit of the bucket whose batch ran out of memory. False when the batch was a single request."""
        if len(batch) == 1:
            return False
        home = self._homes[batch[0]]
        samples = sum(self._buckets[home].places[request].samples for request in batch)
        self._limits[home] = max(1, samples // 2)
        return True


def _fitting(bucket: Bucket[R], limit: int) -> list[Place[R]]:
    """Return the oldest places that fit the limit together; always at least one."""
    batch: list[Place[R]] = []
    samples = 0
    for place in bucket.places.values():
        if batch and samples + place.samples > limit:
            break
        batch.append(place)
        samples += place.samples
    return batch
