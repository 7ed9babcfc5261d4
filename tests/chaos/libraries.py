"""Stands in for the libraries that make modules of checkpoints: a part is a module with one weight, its mark.

It replaces `worker.diffusion.checkpoint_loader` and `tensor_names`, and nothing of residency: files are read, kept, swapped in
place and summed up by the farm's own code.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parsed

from shared.errors import BadCheckpoint
from shared.files.checkpoints import CheckpointFile
from tests.chaos.marked import MARK_BYTES, PARTS

SD15_DIR = Path(__file__).parent
INPAINTING_CHANNELS = 9
READ_S = 0.05  # as from a disk, so that a worker does not have all checkpoints open at once


class Part(torch.nn.Module):
    """A UNet, VAE or text encoder."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.weight = torch.nn.Parameter(weight.float(), requires_grad=False)

    @property
    def mark(self) -> bytes:
        """What is in its weight now."""
        return bytes(self.weight.flatten()[:MARK_BYTES].to(torch.uint8).tolist())


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """A checkpoint in memory."""

    name: str
    unet: Part
    vae: Part
    text_encoder: Part
    device: torch.device
    dtype: torch.dtype
    scheduler_config: Mapping[str, Any] = field(default_factory=dict)

    def on(self, device: torch.device, *, channels_last: bool = False) -> "LoadedCheckpoint":
        """Move the modules to a device."""
        del channels_last
        return replace(self, device=device)


def load(file: CheckpointFile, device: torch.device, dtype: torch.dtype) -> LoadedCheckpoint:
    """Make modules of a file. Raises `BadCheckpoint`."""
    try:
        tensors = parsed(file.path.read_bytes())
        parts: dict[str, Any] = {part: Part(tensors[name]) for part, name in PARTS.items()}
    except (OSError, SafetensorError, KeyError) as error:
        raise BadCheckpoint(f"{file.path}: cannot be loaded ({type(error).__name__}).") from error
    return LoadedCheckpoint(file.name, **parts, device=device, dtype=dtype)


def stored_names(_dims: Mapping[str, int], _config_dir: Path) -> dict[str, dict[str, str]]:
    """Return each part's names in the file by those in the module."""
    time.sleep(READ_S)
    return {part: {"weight": name} for part, name in PARTS.items()}
