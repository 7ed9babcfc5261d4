"""Batch scheduler: chooses the requests of the next UNet call by start-time fair queuing over buckets. No torch.

Requests of one checkpoint and bucket may share a call; whose turn it is among checkpoints, `turns` decides. Within a bucket the
oldest go first, so that images finish soon. Each tick goes to the bucket with the least service so far, counted in cost (fair
queuing, Demers et al. 1989). A bucket that was empty starts level with the least served other, so that absence saves up no
service and no bucket starves.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

R = TypeVar("R", bound=Hashable)
Key = tuple[Hashable, Hashable]  # checkpoint and bucket


class Limits(Protocol):
    """Limits of samples per call, by bucket; see `BatchLimits`."""

    def limit(self, bucket: Hashable) -> int:
        """Return the most samples of one call, at least 1."""

    def shrink(self, bucket: Hashable, samples: int) -> None:
        """Record that a call of so many samples ran out of memory."""

    def fitted(self, bucket: Hashable, samples: int) -> None:
        """Record that a call of so many samples fitted into memory."""


@dataclass(frozen=True, slots=True)
class BucketEntry(Generic[R]):
    """A request with its samples of a call and the cost of one of its steps."""

    request: R
    samples: int
    cost: float


@dataclass(slots=True)
class Bucket(Generic[R]):
    """Requests that may share a call, oldest first, and the cost `served` to them together."""

    served: float
    entries: dict[R, BucketEntry[R]] = field(default_factory=dict)


class BatchScheduler(Generic[R]):
    """Chooses batches within the limits of their bucket."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._buckets: dict[Key, Bucket[R]] = {}
        self._bucket_keys: dict[R, Key] = {}

    def __len__(self) -> int:
        return len(self._bucket_keys)

    def requests(self) -> list[R]:
        """Return all scheduled requests."""
        return list(self._bucket_keys)

    def checkpoints(self) -> dict[Hashable, None]:
        """Return the checkpoints that have requests, each once, in the order of their oldest buckets."""
        return dict.fromkeys(checkpoint for checkpoint, _ in self._buckets)

    def of(self, checkpoint: Hashable) -> list[R]:
        """Return the requests of a checkpoint."""
        return [request for request, (its, _) in self._bucket_keys.items() if its == checkpoint]

    def add(self, request: R, bucket: Hashable, *, samples: int, cost: float, checkpoint: Hashable = None) -> None:
        """Add a request; it may be in the next batch of its checkpoint."""
        key = checkpoint, bucket
        if key not in self._buckets:
            self._buckets[key] = Bucket(served=min((one.served for one in self._beside(checkpoint)), default=0.0))
        self._buckets[key].entries[request] = BucketEntry(request, samples, cost)
        self._bucket_keys[request] = key

    def remove(self, request: R) -> None:
        """Remove a request, and its bucket if that is empty."""
        key = self._bucket_keys.pop(request)
        bucket = self._buckets[key]
        del bucket.entries[request]
        if not bucket.entries:
            del self._buckets[key]

    def schedule(self, checkpoint: Hashable = None) -> list[R]:
        """Choose a checkpoint's next batch and charge its bucket for it. Empty only if the checkpoint has no requests."""
        bucket = min(self._beside(checkpoint), key=lambda one: one.served, default=None)
        if bucket is None:
            return []
        _, shape = self._bucket_keys[next(iter(bucket.entries))]
        batch = _fitting(bucket, self._limits.limit(shape))
        bucket.served += sum(entry.cost for entry in batch)
        return [entry.request for entry in batch]

    def shrink(self, batch: list[R]) -> bool:
        """Lower the limit of a batch that ran out of memory. False if it was a single request, which cannot shrink."""
        if len(batch) == 1:
            return False
        self._limits.shrink(*self._size(batch))
        return True

    def fitted(self, batch: list[R]) -> None:
        """Record that a batch fitted into memory."""
        self._limits.fitted(*self._size(batch))

    def _size(self, batch: list[R]) -> tuple[Hashable, int]:
        """Return a batch's bucket and number of samples."""
        key = self._bucket_keys[batch[0]]
        return key[1], sum(self._buckets[key].entries[request].samples for request in batch)

    def _beside(self, checkpoint: Hashable) -> list[Bucket[R]]:
        """Return the buckets of a checkpoint."""
        return [bucket for (its, _), bucket in self._buckets.items() if its == checkpoint]


def _fitting(bucket: Bucket[R], limit: int) -> list[BucketEntry[R]]:
    """Return the oldest entries that fit the limit together; always at least one."""
    batch: list[BucketEntry[R]] = []
    samples = 0
    for entry in bucket.entries.values():
        if batch and samples + entry.samples > limit:
            break
        batch.append(entry)
        samples += entry.samples
    return batch
