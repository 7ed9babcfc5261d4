"""LoRAs applied sample by sample: the images of one UNet call may carry different ones, at different weights.

A module's weights are never touched. While mixes are applied, forward hooks on the layers that they change add to each group
of rows its own deltas; without LoRAs there are no hooks.
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
    """LoRAs and their weights, and what they come to layer by layer. The same LoRAs at the same weights are one object."""

    parts: Parts
    unet: Mapping[str, tuple[Delta, ...]]
    text_encoder: Mapping[str, tuple[Delta, ...]]

    @classmethod
    def of(cls, parts: Iterable[tuple[LoadedLora, float]]) -> "Mix | None":
        """Return a mix of what has any weight; None for nothing. Any thread may ask."""
        heavy = tuple((lora, float(weight)) for lora, weight in parts if weight)
        if not heavy:
            return None
        with _lock:
            mix = _mixes.get(heavy)
        if mix is None:
            made = cls(heavy, _merged(heavy, "unet"), _merged(heavy, "text_encoder"))
            with _lock:
                mix = _mixes.setdefault(heavy, made)
        return mix

    @property
    def key(self) -> tuple[tuple[int, float], ...]:
        """What to remember a mix by: unlike the mix itself it keeps no LoRA in memory."""
        return tuple((lora.serial, weight) for lora, weight in self.parts)

    def side(self, side: str) -> Mapping[str, tuple[Delta, ...]]:
        """Return what is added to the layers of `unet` or `text_encoder`."""
        return self.unet if side == "unet" else self.text_encoder


_mixes: "WeakValueDictionary[Parts, Mix]" = WeakValueDictionary()
_lock = Lock()

Groups = Sequence[tuple[int, Mix | None]]
Additions = list[tuple[slice, Delta]]


class Adapters:
    """What LoRAs do to one module, `unet` or `text_encoder`. Belongs to the engine's thread."""

    def __init__(self, module: Any, side: str) -> None:
        self._layers: dict[str, Any] = dict(module.named_modules())
        self._side = side
        self._planned: list[tuple[int, Mix | None]] = []
        self._plan: dict[str, Additions] = {}

    @contextmanager
    def applied(self, groups: Groups) -> Iterator[None]:
        """Apply LoRAs while the block lasts. The module's batch consists of these groups: so many rows, their mix."""
        joined = _joined(groups)
        if joined != self._planned:
            self._plan, self._planned = self._plan_of(joined), joined
        hooks = [self._layers[path].register_forward_hook(_adding(what)) for path, what in self._plan.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _plan_of(self, groups: Groups) -> dict[str, Additions]:
        """Return what is added to each layer, group by group. A group that is alone is all rows, however many."""
        plan: dict[str, Additions] = {}
        begin = 0
        for count, mix in groups:
            rows = slice(begin, begin + count) if len(groups) > 1 else slice(None)
            for path, deltas in mix.side(self._side).items() if mix else ():
                plan.setdefault(path, []).extend((rows, delta) for delta in deltas)
            begin += count
        return plan


class LoraShelf:
    """The LoRAs of a folder, those used last in memory, up to a number of bytes. Any thread may ask."""

    def __init__(self, shelf: Shelf, checkpoint: LoadedCheckpoint, *, memory_bytes: int) -> None:
        self._shelf = shelf
        self._checkpoint = checkpoint
        self._memory_bytes = memory_bytes
        self._loaded: OrderedDict[WeightsFile, Future[LoadedLora]] = OrderedDict()
        self._lock = Lock()

    def get(self, name: str) -> LoadedLora:
        """Return a LoRA by name or alias, loading it on this thread or waiting for the one that does.

        Raises `WeightsMissing`, `BadWeights` or `OutOfMemory`.
        """
        file = self._shelf.find(name)
        with self._lock:
            future = self._loaded.get(file)
            is_ours = future is None
            if future is None:
                future = self._loaded[file] = Future()
            self._loaded.move_to_end(file)
        if is_ours:
            self._load(file, future)
        return future.result()

    def _load(self, file: WeightsFile, future: "Future[LoadedLora]") -> None:
        try:
            future.set_result(self._read(file))
            self._shed(self._memory_bytes, keep=1)
        except BaseException as error:
            with self._lock:
                self._loaded.pop(file, None)
            future.set_exception(error)
            raise

    def _read(self, file: WeightsFile) -> LoadedLora:
        try:
            return load(file, self._checkpoint)
        except OutOfMemory as error:
            out_of_memory.release(error)
        self._shed(0, keep=0)
        return load(file, self._checkpoint)

    def _shed(self, memory_bytes: int, *, keep: int) -> None:
        """Let go of the longest unused, but `keep` so many of the last; whoever renders with one holds it anyway."""
        with self._lock:
            sizes = {file: one.result().size_bytes for file, one in self._loaded.items() if one.done()}
            taken = sum(sizes.values())
            for file in list(sizes)[: len(sizes) - keep]:
                if taken <= memory_bytes:
                    return
                taken -= sizes[file]
                del self._loaded[file]


@torch.inference_mode()
def _merged(parts: Parts, side: str) -> dict[str, tuple[Delta, ...]]:
    """Return the deltas of each layer at their weights, all low ranks of a layer as one."""
    found: dict[str, list[Delta]] = {}
    for lora, weight in parts:
        for path, delta in lora.side(side).items():
            found.setdefault(path, []).append(replace(delta, scale=delta.scale * weight))
    return {path: _joined_ranks(deltas) for path, deltas in found.items()}


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
    """Return the groups with neighbours of one mix as one."""
    joined: list[tuple[int, Mix | None]] = []
    for count, mix in groups:
        if joined and joined[-1][1] is mix:
            joined[-1] = (joined[-1][0] + count, mix)
        else:
            joined.append((count, mix))
    return joined


def _adding(what: Additions) -> Callable[[Any, tuple[Tensor, ...], Tensor], None]:
    def add(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for rows, delta in what:
            delta.add(layer, inputs[0][rows], output[rows])

    return add
