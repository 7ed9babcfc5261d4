"""LoRAs per row of a batch: the images of one UNet call may use different LoRAs at different weights.

A module's weights are never changed. Within `Adapters.applied`, forward hooks add each group of rows its LoRAs' deltas; without
LoRAs there are no hooks.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from shared.errors import OutOfMemory
from shared.files.weights import Shelf, WeightsFile
from worker.diffusion import out_of_memory
from worker.diffusion.checkpoint_loader import LoadedCheckpoint
from worker.diffusion.lora_file import Delta, LoadedLora, LowRank, load

Parts = tuple[tuple[LoadedLora, float], ...]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Mix:
    """LoRAs at their weights, merged layer by layer. The same LoRAs at the same weights are one object."""

    parts: Parts
    unet: Mapping[str, tuple[Delta, ...]]
    text_encoder: Mapping[str, tuple[Delta, ...]]

    @classmethod
    def of(cls, parts: Iterable[tuple[LoadedLora, float]]) -> "Mix | None":
        """Return the mix of the LoRAs with a weight other than 0; None if there are none. Thread-safe."""
        weighted = tuple((lora, float(weight)) for lora, weight in parts if weight)
        if not weighted:
            return None
        with _lock:
            mix = _mixes.get(weighted)
        if mix is None:
            merged = cls(weighted, _merged(weighted, "unet"), _merged(weighted, "text_encoder"))
            with _lock:
                mix = _mixes.setdefault(weighted, merged)
        return mix

    @property
    def key(self) -> tuple[tuple[int, float], ...]:
        """Cache key of the mix that, unlike the mix itself, keeps no LoRA in memory."""
        return tuple((lora.serial, weight) for lora, weight in self.parts)

    def side(self, side: str) -> Mapping[str, tuple[Delta, ...]]:
        """Return the deltas of the layers of `unet` or `text_encoder`."""
        return self.unet if side == "unet" else self.text_encoder


_mixes: "WeakValueDictionary[Parts, Mix]" = WeakValueDictionary()
_lock = Lock()

Groups = Sequence[tuple[int, Mix | None]]
Additions = list[tuple[slice, Delta]]


class Adapters:
    """Applies mixes to one module, `unet` or `text_encoder`. For the engine's thread only."""

    def __init__(self, module: Any, side: str) -> None:
        self._layers: dict[str, Any] = dict(module.named_modules())
        self._side = side
        self._planned: list[tuple[int, Mix | None]] = []
        self._plan: dict[str, Additions] = {}

    @contextmanager
    def applied(self, groups: Groups) -> Iterator[None]:
        """Apply LoRAs within the block to a batch that consists of these groups, (rows, mix)."""
        joined = _joined(groups)
        if joined != self._planned:
            self._plan, self._planned = self._plan_of(joined), joined
        hooks = [self._layers[path].register_forward_hook(_adding(additions)) for path, additions in self._plan.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _plan_of(self, groups: Groups) -> dict[str, Additions]:
        """Return the deltas of each layer with their rows. A single group means all rows, however many."""
        plan: dict[str, Additions] = {}
        begin = 0
        for count, mix in groups:
            rows = slice(begin, begin + count) if len(groups) > 1 else slice(None)
            for path, deltas in mix.side(self._side).items() if mix else ():
                plan.setdefault(path, []).extend((rows, delta) for delta in deltas)
            begin += count
        return plan


class LoraShelf:
    """Cache over the LoRAs of a folder: the last used stay loaded, up to a number of bytes. Thread-safe.

    A LoRA is loaded for the layers of one architecture, whatever weights those have.
    """

    def __init__(self, shelf: Shelf, *, memory_bytes: int) -> None:
        self._shelf = shelf
        self._memory_bytes = memory_bytes
        self._loaded: OrderedDict[tuple[WeightsFile, str], Future[LoadedLora]] = OrderedDict()
        self._lock = Lock()

    def get(self, name: str, checkpoint: LoadedCheckpoint, architecture: str) -> LoadedLora:
        """Return a LoRA by name or alias, loading it on this thread or waiting for the one that does.

        Raises `WeightsMissing`, `BadWeights`, `OutOfMemory` or `StorageUnavailable`.
        """
        key = self._shelf.find(name), architecture
        with self._lock:
            future = self._loaded.get(key)
            is_ours = future is None
            if future is None:
                future = self._loaded[key] = Future()
            self._loaded.move_to_end(key)
        if is_ours:
            self._load(key, checkpoint, future)
        return future.result()

    def _load(self, key: tuple[WeightsFile, str], checkpoint: LoadedCheckpoint, future: "Future[LoadedLora]") -> None:
        try:
            future.set_result(self._read(self._shelf.fetched(key[0]), checkpoint))
            self._shed(self._memory_bytes, keep=1)
        except BaseException as error:
            with self._lock:
                self._loaded.pop(key, None)
            future.set_exception(error)
            raise

    def _read(self, file: WeightsFile, checkpoint: LoadedCheckpoint) -> LoadedLora:
        try:
            return load(file, checkpoint)
        except OutOfMemory as error:
            out_of_memory.release(error)
        self._shed(0, keep=0)
        return load(file, checkpoint)

    def _shed(self, memory_bytes: int, *, keep: int) -> None:
        """Drop the least recently used beyond `memory_bytes`, but never the `keep` last. Images in flight hold theirs anyway."""
        with self._lock:
            sizes = {file: one.result().size_bytes for file, one in self._loaded.items() if one.done()}
            total = sum(sizes.values())
            for file in list(sizes)[: len(sizes) - keep]:
                if total <= memory_bytes:
                    return
                total -= sizes[file]
                del self._loaded[file]


@torch.inference_mode()
def _merged(parts: Parts, side: str) -> dict[str, tuple[Delta, ...]]:
    """Return the deltas of each layer at their weights, all low ranks of a layer concatenated into one."""
    by_path: dict[str, list[Delta]] = {}
    for lora, weight in parts:
        for path, delta in lora.side(side).items():
            by_path.setdefault(path, []).append(replace(delta, scale=delta.scale * weight))
    return {path: _joined_ranks(deltas) for path, deltas in by_path.items()}


def _joined_ranks(deltas: list[Delta]) -> tuple[Delta, ...]:
    thin = [delta for delta in deltas if isinstance(delta, LowRank) and delta.scale]
    rest = [delta for delta in deltas if not isinstance(delta, LowRank)]
    if len(thin) < 2:
        return (*thin, *rest)
    # Relative to the strongest, so that small scales do not push half-precision numbers out of their range.
    scale = max((delta.scale for delta in thin), key=abs)
    down = torch.cat([delta.down for delta in thin])
    up = torch.cat([delta.up * (delta.scale / scale) for delta in thin], dim=1)
    return (LowRank(down, up, scale), *rest)


def _joined(groups: Groups) -> list[tuple[int, Mix | None]]:
    """Join neighbouring groups of one mix."""
    joined: list[tuple[int, Mix | None]] = []
    for count, mix in groups:
        if joined and joined[-1][1] is mix:
            joined[-1] = (joined[-1][0] + count, mix)
        else:
            joined.append((count, mix))
    return joined


def _adding(additions: Additions) -> Callable[[Any, tuple[Tensor, ...], Tensor], None]:
    def add(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for rows, delta in additions:
            delta.add(layer, inputs[0][rows], output[rows])

    return add
