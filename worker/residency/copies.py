"""Copies of weights on one side, in RAM or in spare VRAM: bounded in bytes, least recently used goes first.

Parts that several checkpoints share, text encoders and VAEs as a rule, are kept once. Not thread-safe: its owner holds a lock.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping

from torch import Tensor

from worker.residency.weights import CheckpointWeights


class Copies:
    """Whole checkpoints by their `CheckpointWeights.key`, their parts by digest; together at most `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._kept: OrderedDict[str, CheckpointWeights] = OrderedDict()
        self._flats: dict[str, Tensor] = {}

    def __contains__(self, weights: CheckpointWeights) -> bool:
        return weights.key in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def size_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(flat.numel() for flat in self._flats.values())

    def flat(self, digest: str) -> Tensor | None:
        """Return the memory of a part; None if it is not here."""
        return self._flats.get(digest)

    def use(self, weights: CheckpointWeights) -> None:
        """Note that a checkpoint is used now."""
        if weights.key in self._kept:
            self._kept.move_to_end(weights.key)

    def lacking(self, weights: CheckpointWeights) -> list[str]:
        """Return the parts of a checkpoint that are not here."""
        return [part for part, sums in weights.parts.items() if sums.digest not in self._flats]

    def missing_bytes(self, weights: CheckpointWeights) -> int:
        """Return how many bytes a checkpoint would add."""
        return sum(weights.sizes[part] for part in self.lacking(weights))

    def make_room(self, size_bytes: int, *, keep: Callable[[CheckpointWeights], bool] = lambda _: False) -> bool:
        """Drop what was used least recently until so many bytes fit; False if what must be kept leaves no such room."""
        for weights in list(self._kept.values()):
            if self.size_bytes + size_bytes <= self.max_bytes:
                break
            if not keep(weights):
                self.drop(weights)
        return self.size_bytes + size_bytes <= self.max_bytes

    def put(self, weights: CheckpointWeights, flats: Mapping[str, Tensor]) -> None:
        """Keep a checkpoint. `flats` has the memory of its parts, at least of those that are `lacking`."""
        for part in self.lacking(weights):
            self._flats[weights.parts[part].digest] = flats[part]
        self._kept[weights.key] = weights
        self._kept.move_to_end(weights.key)

    def drop(self, weights: CheckpointWeights) -> None:
        """Forget a checkpoint, and the parts that no other has."""
        if self._kept.pop(weights.key, None) is not None:
            self._sweep()

    def drop_parts(self, digests: Collection[str]) -> None:
        """Forget every checkpoint that has one of these parts."""
        for weights in [one for one in self._kept.values() if set(digests) & set(one.digests().values())]:
            self.drop(weights)

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()
        self._sweep()

    def _sweep(self) -> None:
        needed = {digest for weights in self._kept.values() for digest in weights.digests().values()}
        self._flats = {digest: flat for digest, flat in self._flats.items() if digest in needed}
