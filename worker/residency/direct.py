"""Direct reading: a single file's tensors go one by one from the disk to their berths, and all its bytes through its SHA-256.

Nothing is mapped: a mapped file that is cut while it is read would end the process. No module is built either, for which the
libraries change what all threads share.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from torch import Tensor

from shared.errors import BadCheckpoint
from shared.files.headers import MAX_HEADER_BYTES

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
B = TypeVar("B", bytearray, memoryview)

CHUNK_BYTES = 4 * 2**20  # stays in a processor's cache between the disk, the digest and the copy
LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a tensor lies in a file, from the end of its header."""

    name: str
    begin: int
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def read_into(path: Path, views: Mapping[str, Tensor]) -> str:
    """Copy tensors of a safetensors file into `views`, by their names in it, in the views' precision; returns the file's SHA-256.

    A shape may lack dimensions of one. Raises `BadCheckpoint` for a file that is cut, lacks a tensor or has one of another size.
    """
    try:
        with path.open("rb") as file:
            return _read_into(path, file, views)
    except OSError as error:
        raise BadCheckpoint(f"{path}: cannot be read ({error.strerror}).") from error


def _read_into(path: Path, file: BinaryIO, views: Mapping[str, Tensor]) -> str:
    sha256 = hashlib.sha256()
    length_field = _exactly(path, file, bytearray(LENGTH_BYTES))
    length = int.from_bytes(length_field, "little")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise BadCheckpoint(f"{path}: not a safetensors file (its header is unreadable).")
    header = _exactly(path, file, bytearray(length))
    sha256.update(length_field)
    sha256.update(header)
    extents = _extents(path, header)
    wanted = [extent for extent in extents if extent.name in views]
    if missing := set(views) - {extent.name for extent in wanted}:
        raise BadCheckpoint(f"{path}: the tensor {min(missing)} is missing.")
    for extent in wanted:
        _check(path, views[extent.name], extent)
    # One for all: to have each anew from the system takes longer than to fill it.
    buffer = memoryview(bytearray(max([CHUNK_BYTES, *(_row_bytes(views[one.name], one) for one in wanted)])))
    at = 0
    for extent in extents:
        if extent.begin < at:
            raise BadCheckpoint(f"{path}: its tensors overlap.")
        _skip(path, file, extent.begin - at, sha256)
        view = views.get(extent.name)
        if view is None:
            _skip(path, file, extent.end - extent.begin, sha256)
        else:
            for part in _parts(view, extent):
                data = _exactly(path, file, buffer[: part.numel() * extent.dtype.itemsize])
                sha256.update(data)
                part.copy_(torch.frombuffer(data, dtype=extent.dtype).view(part.shape))
        at = extent.end
    while rest := file.read(CHUNK_BYTES):
        sha256.update(rest)
    return sha256.hexdigest()


def _extents(path: Path, header: bytearray) -> list[Extent]:
    """Return a file's tensors in the order in which they lie in it."""
    try:
        entries: dict[str, Any] = json.loads(header)
        entries.pop("__metadata__", None)
        found = [
            Extent(name, int(begin), int(end), DTYPES[one["dtype"]], tuple(one["shape"]))
            for name, one in entries.items()
            for begin, end in [one["data_offsets"]]
        ]
        return sorted(found, key=lambda one: (one.begin, one.end))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadCheckpoint(f"{path}: its header is unreadable.") from error


def _parts(view: Tensor, extent: Extent) -> Sequence[Tensor]:
    """Return a tensor's place in pieces of whole rows that take at most a chunk in the file, or else a row."""
    rows = view if view.dim() else view.view(1)
    return rows.split(max(1, CHUNK_BYTES // max(1, _row_bytes(view, extent)))) if view.numel() else ()


def _row_bytes(view: Tensor, extent: Extent) -> int:
    return math.prod(view.shape[1:]) * extent.dtype.itemsize


def _check(path: Path, view: Tensor, extent: Extent) -> None:
    """Refuse a tensor of another size before any memory is taken for it."""
    size = math.prod(extent.shape)
    if size != math.prod(view.shape) or extent.end - extent.begin != size * extent.dtype.itemsize:
        raise BadCheckpoint(f"{path}: the tensor {extent.name} is {extent.shape}, not {tuple(view.shape)}.")


def _exactly(path: Path, file: BinaryIO, data: B) -> B:
    """Fill memory from a file, and return it."""
    if file.readinto(data) != len(data):  # type: ignore[attr-defined]
        raise BadCheckpoint(f"{path}: it was cut while it was read.")
    return data


def _skip(path: Path, file: BinaryIO, size: int, sha256: Any) -> None:
    while size > 0:
        data = file.read(min(size, CHUNK_BYTES))
        if not data:
            raise BadCheckpoint(f"{path}: it was cut while it was read.")
        sha256.update(data)
        size -= len(data)
