"""Headers of safetensors files: the names, types and shapes of their tensors. No weights are read."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import BadCheckpoint

MAX_HEADER_BYTES = 32 * 1024 * 1024  # SD1.5's header is 0.15 MB
ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "U8": 1, "I8": 1, "BOOL": 1}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a safetensors header. `dtype` is one of `ITEM_BYTES`."""

    dtype: str
    shape: tuple[int, ...]


Header = Mapping[str, StoredTensor]


def read_header(path: Path) -> Header:
    """Read the header of a file and check that the file is complete. Raises `BadCheckpoint` or `OSError`."""
    raw = read_raw(path)
    return parsed(path, raw, path.stat().st_size)


def read_raw(path: Path) -> bytes:
    """Read the header's JSON. Raises `BadCheckpoint` or `OSError`."""
    if not path.is_file():  # opening a pipe would wait for ever
        raise BadCheckpoint(f"{path}: not a regular file.")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= MAX_HEADER_BYTES:
            raise BadCheckpoint(f"{path}: not a safetensors file (its header is unreadable).")
        if 8 + length > size:
            raise BadCheckpoint(f"{path}: truncated inside its header; download it again.")
        return file.read(length)


def parsed(path: Path, raw: bytes, size_bytes: int) -> Header:
    """Read a header's JSON and check that a file of so many bytes is complete. Raises `BadCheckpoint`, naming the path."""
    tensors = _tensors(path, raw)
    end = 8 + len(raw) + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    if end != size_bytes:
        raise BadCheckpoint(
            f"{path}: truncated or damaged ({size_bytes} bytes, its header says {end}); download it again."
        )
    return {name: StoredTensor(tensor["dtype"], tuple(tensor["shape"])) for name, tensor in tensors.items()}


def metadata(raw: bytes) -> Mapping[str, Any]:
    """Return what a header that has been parsed says about its file."""
    found = json.loads(raw).get("__metadata__")
    return found if isinstance(found, dict) else {}


def _tensors(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads(raw)
        header.pop("__metadata__", None)
        for tensor in header.values():
            _check_extent(tensor)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadCheckpoint(f"{path}: not a safetensors file (its header is unreadable).") from error
    return header


def _check_extent(tensor: Mapping[str, Any]) -> None:
    """Raise `ValueError` if a tensor's offsets do not fit its shape and dtype."""
    begin, end = tensor["data_offsets"]
    item_bytes = ITEM_BYTES.get(tensor["dtype"])
    if not all(isinstance(n, int) and n >= 0 for n in (begin, end, *tensor["shape"])) or begin > end:
        raise ValueError("impossible offsets")
    if item_bytes is not None and end - begin != math.prod(tensor["shape"]) * item_bytes:
        raise ValueError("offsets that do not fit the shape")
