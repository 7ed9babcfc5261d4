"""Who is in the next UNet call. Pure policy over plain values; no torch.

Requests of one bucket may share a call. Within a bucket the oldest go first, so what has begun ends soon. Across buckets each
tick goes to the one that has had the least service, counted in cost (fair queuing, Demers et al. 1989); a bucket that was empty
starts level with the others, so nobody can save up service while away, and nobody starves.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

R = TypeVar("R", bound=Hashable)


class Limits(Protocol):
    """How many samples one call of a bucket may hold."""

    def limit(self, bucket: Hashable) -> int:
        """Return the most samples of one call, at least 1."""

    def shrink(self, bucket: Hashable, samples: int) -> None:
        """Learn that a call of so many samples ran out of memory."""

    def fitted(self, bucket: Hashable, samples: int) -> None:
        """Learn that a call of so many samples did not."""


@dataclass(frozen=True, slots=True)
class BucketEntry(Generic[R]):
    """A request's place in its bucket: what it takes of a call, in samples, and what a step of it costs."""

    request: R
    samples: int
    cost: float


@dataclass(slots=True)
class Bucket(Generic[R]):
    """Requests that may share a call, oldest first, and the service they have had together."""

    served: float
    places: dict[R, BucketEntry[R]] = field(default_factory=dict)


class BatchScheduler(Generic[R]):
    """Chooses batches that stay within the limits of their bucket."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
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
        self._buckets[bucket].places[request] = BucketEntry(request, samples, cost)
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
        batch = _fitting(bucket, self._limits.limit(key))
        bucket.served += sum(place.cost for place in batch)
        return [place.request for place in batch]

    def shrink(self, batch: list[R]) -> bool:
        """Lower the limit of the bucket whose batch ran out of memory. False when the batch was a single request."""
        if len(batch) == 1:
            return False
        self._limits.shrink(*self._measured(batch))
        return True

    def fitted(self, batch: list[R]) -> None:
        """Tell the limits that a batch did not run out of memory."""
        self._limits.fitted(*self._measured(batch))

    def _measured(self, batch: list[R]) -> tuple[Hashable, int]:
        """Return a batch's bucket and how many samples it has."""
        home = self._homes[batch[0]]
        return home, sum(self._buckets[home].places[request].samples for request in batch)


def _fitting(bucket: Bucket[R], limit: int) -> list[BucketEntry[R]]:
    """Return the oldest places that fit the limit together; always at least one."""
    batch: list[BucketEntry[R]] = []
    samples = 0
    for place in bucket.places.values():
        if batch and samples + place.samples > limit:
            break
        batch.append(place)
        samples += place.samples
    return batch
