"""Reading of checkpoints from disk into host memory.

The first file of its kind is loaded by the libraries, which make modules of it. Those that follow are read directly into memory
from which the modules' weights are copied.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor

from shared.errors import BadCheckpoint
from shared.files import checkpoints, headers
from shared.files.checkpoints import CheckpointFile, Stamp
from worker.diffusion import checkpoint_loader, tensor_names
from worker.diffusion.checkpoint_loader import SD15_DIR, LoadedCheckpoint
from worker.residency import arena, direct
from worker.residency.arena import Layout
from worker.residency.modules import ResidentModules
from worker.residency.weights import PARTS

CPU = torch.device("cpu")
CHANGED = "it changed while it was read; the next job reads it anew."

# The libraries change what all threads share while they load.
_loading = Lock()


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A checkpoint's file: its SHA-256, a stamp that changes when the file does, and its kind."""

    sha256: str = ""
    stamp: Stamp | None = None
    kind: str | None = None


def read(file: CheckpointFile, dtype: torch.dtype) -> tuple[LoadedCheckpoint, FileFacts]:
    """Read a checkpoint onto the CPU, as its file is now. Raises `BadCheckpoint`, also if it changes meanwhile."""
    stamp = checkpoints.present_stamp(file)
    present = checkpoints.inspect_anew(file)
    with _loading:
        loaded = checkpoint_loader.load(present, CPU, dtype)
    try:
        sha256 = checkpoints.digest(present)
    except OSError as error:
        raise BadCheckpoint(f"{file.path}: cannot be read ({error.strerror}).") from error
    if checkpoints.present_stamp(file) != stamp:
        raise BadCheckpoint(f"{file.path}: {CHANGED}")
    return loaded, FileFacts(sha256, stamp, kind(present, dtype))


def kind(file: CheckpointFile, dtype: torch.dtype) -> str | None:
    """Return what files have in common that become the same modules and scheduler config; None for those only libraries read."""
    if file.layout != "single_file":
        return None
    folder = file.config_dir or SD15_DIR
    configs = [path.read_text() for path in sorted(folder.rglob("*.json"))]
    return repr((configs, file.in_channels, file.predicts_velocity, file.ends_in_noise, dtype))


def read_directly(
    file: CheckpointFile, modules: ResidentModules, *, is_pinned: bool
) -> tuple[dict[str, Tensor], FileFacts]:
    """Read a single file whose kind has modules. Raises `BadCheckpoint`, also if it changes meanwhile."""
    stamp = checkpoints.present_stamp(file)
    flats = {part: modules.layouts[part].empty(CPU, is_pinned=is_pinned) for part in PARTS}
    dims = {name: len(tensor.shape) for name, tensor in headers.read_header(file.path).items()}
    stored = tensor_names.stored_names(dims, file.config_dir or SD15_DIR)
    views: dict[str, Tensor] = {}
    for part, flat in flats.items():
        names = arena.names(getattr(modules.loaded, part))
        for name, view in zip(names, modules.layouts[part].views(flat), strict=True):
            if name in modules.constants[part]:
                view.copy_(modules.constants[part][name])
            elif name in stored[part]:
                views[stored[part][name]] = view
            else:
                raise BadCheckpoint(
                    f"{file.path}: cannot be loaded as Stable Diffusion 1.5 (the tensor {name} is missing)."
                )
    sha256 = direct.read_into(file.path, views)
    if checkpoints.present_stamp(file) != stamp:
        raise BadCheckpoint(f"{file.path}: {CHANGED}")
    return flats, FileFacts(sha256, stamp)


def flats_of(loaded: LoadedCheckpoint, layouts: Mapping[str, Layout], *, is_pinned: bool) -> dict[str, Tensor]:
    """Copy a checkpoint on the CPU into host memory of these layouts, pinned for a device that copies by itself."""
    flats = {part: layouts[part].empty(CPU, is_pinned=is_pinned) for part in PARTS}
    for part, flat in flats.items():
        layouts[part].fill(flat, arena.tensors(getattr(loaded, part)))
    return flats
