"""Arena of a module: all of its weights in one piece of memory, so that one copy replaces them and one sum checks them.

Compiled code, hooks and memory format hold on to a module's parameters. They stay what they are; only the numbers in them change.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

# How a tensor is aligned decides by which kernel it is multiplied, and so the last bits of a picture.
ALIGNMENT = 256
WORD_BYTES = 8
ROW_WORDS = 65536
CACHED_ROWS = 2  # a megabyte
ROW_BYTES = ROW_WORDS * WORD_BYTES

# Not in the modules: a copy of one would copy its arena beside the weights.
_arenas: "WeakKeyDictionary[Any, Tensor]" = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Berth:
    """Where a tensor lies in an arena. `stride` is in elements: a memory format is kept."""

    offset: int
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Layout:
    """The berths of a module's parameters and buffers, in its own order, and the bytes that they take together."""

    berths: tuple[Berth, ...]
    size_bytes: int

    @classmethod
    def of(cls, module: Any) -> Self:
        """Lay out a module as its tensors are now."""
        berths, end = [], 0
        for tensor in tensors(module):
            berths.append(Berth(end, tensor.shape, tensor.stride(), tensor.dtype))
            end += _rounded(tensor.numel() * tensor.element_size(), ALIGNMENT)
        return cls(tuple(berths), _rounded(end, ROW_BYTES))

    def views(self, flat: Tensor) -> Iterator[Tensor]:
        """Yield the tensors that lie in a piece of memory of this layout."""
        for berth in self.berths:
            yield flat[berth.offset : berth.end].view(berth.dtype).as_strided(berth.shape, berth.stride)

    def empty(self, device: torch.device, *, is_pinned: bool = False) -> Tensor:
        """Allocate memory for this layout, with zeros between the tensors, which count in the sums, too.

        Where tensors will lie it takes none of the machine's before they come.
        """
        flat = torch.empty(self.size_bytes, dtype=torch.uint8, device=device, pin_memory=is_pinned)
        for begin, end in self._gaps():
            flat[begin:end].zero_()
        return flat

    def _gaps(self) -> Iterator[tuple[int, int]]:
        ends = (0, *(berth.end for berth in self.berths))
        return zip(ends, (*(berth.offset for berth in self.berths), self.size_bytes), strict=True)

    @torch.inference_mode()
    def fill(self, flat: Tensor, sources: Sequence[Tensor]) -> None:
        """Copy tensors of these shapes, of any precision and memory format, into a piece of memory."""
        for view, source in zip(self.views(flat), sources, strict=True):
            view.copy_(source)


def tensors(module: Any) -> list[Tensor]:
    """Return a module's parameters and buffers in its own order, each once."""
    return list(chain(module.parameters(), module.buffers()))


def names(module: Any) -> list[str]:
    """Return their names."""
    return [name for name, _ in chain(module.named_parameters(), module.named_buffers())]


def move_in(module: Any) -> Tensor:
    """Move a module's weights into an arena on their device, once and for all; returns its memory."""
    held = _arenas.get(module)
    if held is not None and _lies_in(module, held):
        return held
    layout, own = Layout.of(module), tensors(module)
    # Of the same kind as the weights are: torch does not mix those made for inference alone with others.
    with torch.inference_mode(bool(own) and own[0].is_inference()):
        flat = layout.empty(own[0].device if own else torch.device("cpu"))
        # One by one: all of them would lie in memory twice.
        for tensor, view in zip(own, layout.views(flat), strict=True):
            view.copy_(tensor)
            tensor.data = view
    _arenas[module] = flat
    return flat


def sums(flat: Tensor) -> Tensor:
    """Return the sums of a piece of memory's rows of words, (rows,) int64 on its device: any flipped bit changes one.

    Integer sums do not depend on the order in which a device adds, as float sums would.
    """
    return _rows(flat).sum(1)


@torch.inference_mode()
def exchange(flat: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """Copy a piece of memory over another; returns the sums of what was there, and of what is there now.

    On a CPU a piece at a time, while it is in the cache: sums of the whole would take as long again as the copy.
    """
    if flat.device.type != "cpu":
        before = sums(flat)
        flat.copy_(source, non_blocking=True)
        return before, sums(flat)
    rows, new = _rows(flat), _rows(source)
    before, after = (torch.empty(len(rows), dtype=torch.int64) for _ in range(2))
    for begin in range(0, len(rows), CACHED_ROWS):
        part = slice(begin, begin + CACHED_ROWS)
        torch.sum(rows[part], 1, out=before[part])
        rows[part].copy_(new[part])
        torch.sum(rows[part], 1, out=after[part])
    return before, after


def digest(flat: Tensor, row_sums: Tensor) -> str:
    """Return a digest of a piece of memory: of its sums by rows and by columns, so that swapped numbers are others, too."""
    total = hashlib.sha256(row_sums.cpu().numpy().tobytes())
    total.update(_rows(flat).sum(0).cpu().numpy().tobytes())
    return total.hexdigest()


def _rows(flat: Tensor) -> Tensor:
    return flat.view(torch.int64).view(-1, ROW_WORDS)


def _lies_in(module: Any, flat: Tensor) -> bool:
    """Whether a module's weights are still those of an arena: a copy of a module is not its original."""
    first = next(iter(tensors(module)), None)
    return first is None or first.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()


def _rounded(size: int, to: int) -> int:
    return -(-size // to) * to
