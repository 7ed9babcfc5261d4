"""Reading of checkpoints from disk into host memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from shared.errors import BadCheckpoint
from shared.files import checkpoints
from shared.files.checkpoints import CheckpointFile
from worker.diffusion import checkpoint_loader
from worker.diffusion.checkpoint_loader import LoadedCheckpoint
from worker.residency import arena
from worker.residency.arena import Layout
from worker.residency.weights import PARTS

CPU = torch.device("cpu")

# The libraries change what all threads share while they load.
_loading = Lock()


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A checkpoint's file: its SHA-256, and a stamp that changes when the file does."""

    sha256: str = ""
    stamp: object = None


def read(file: CheckpointFile, dtype: torch.dtype) -> tuple[LoadedCheckpoint, FileFacts]:
    """Read a checkpoint onto the CPU, as its file is now. Raises `BadCheckpoint`, also if it changes meanwhile."""
    stamp = stamp_of(file)
    present = checkpoints.inspect(file.path)
    with _loading:
        loaded = checkpoint_loader.load(present, CPU, dtype)
    try:
        sha256 = checkpoints.digest(present)
    except OSError as error:
        raise BadCheckpoint(f"{file.path}: cannot be read ({error.strerror}).") from error
    if stamp_of(file) != stamp:
        raise BadCheckpoint(f"{file.path}: it changed while it was read; the next job reads it anew.")
    return loaded, FileFacts(sha256, stamp)


def flats_of(loaded: LoadedCheckpoint, layouts: Mapping[str, Layout], *, is_pinned: bool) -> dict[str, Tensor]:
    """Copy a checkpoint on the CPU into host memory of these layouts, pinned for a device that copies by itself."""
    flats = {part: layouts[part].empty(CPU, is_pinned=is_pinned) for part in PARTS}
    for part, flat in flats.items():
        layouts[part].fill(flat, arena.tensors(getattr(loaded, part)))
    return flats


def stamp_of(file: CheckpointFile) -> object:
    """Return what changes when a checkpoint's files do; None while they cannot be looked at."""
    try:
        paths = [file.path] if file.layout == "single_file" else sorted(file.path.rglob("*.safetensors"))
        configs = sorted(file.config_dir.rglob("*.json")) if file.config_dir else []
        return tuple(_stamp(path) for path in [*paths, *configs]) or None
    except OSError:
        return None


def _stamp(path: Path) -> tuple[Any, ...]:
    stat = path.stat()
    return str(path), stat.st_ino, stat.st_mtime_ns, stat.st_size
