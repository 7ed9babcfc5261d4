"""Checkpoints that are kin to the demo: the same but for the colours that their VAEs show, or for a detail of their UNets."""

import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from shared.files import checkpoints
from shared.files.checkpoints import CheckpointFile
from tests.support import studio
from worker.residency import reading
from worker.residency.residency import Residency
from worker.residency.source import GivenFiles

COLORS = ("first_stage_model.decoder.conv_out.weight", "first_stage_model.decoder.conv_out.bias")
UNET_WEIGHT = "model.diffusion_model.input_blocks.0.0.weight"


@cache
def demo_tensors() -> Mapping[str, torch.Tensor]:
    """The demo's own."""
    return load_file(studio.DEMO)


def written(folder: Path, name: str, changes: Mapping[str, torch.Tensor]) -> CheckpointFile:
    """Write the demo with some other tensors."""
    path = folder / f"{name}.safetensors"
    save_file({**demo_tensors(), **changes}, path)
    if not path.with_suffix(".config").exists():
        shutil.copytree(studio.DEMO.with_suffix(".config"), path.with_suffix(".config"))
    return checkpoints.inspect(path)


def recolored(folder: Path, name: str, order: tuple[int, int, int]) -> CheckpointFile:
    """Write a checkpoint whose pictures are the demo's with their channels in another order."""
    return written(folder, name, {one: demo_tensors()[one][list(order)].contiguous() for one in COLORS})


def retouched(folder: Path, name: str, factor: float) -> CheckpointFile:
    """Write a checkpoint whose UNet is another, and whose text encoder and VAE are the demo's."""
    return written(folder, name, {UNET_WEIGHT: demo_tensors()[UNET_WEIGHT] * factor})


def residency(*files: CheckpointFile, **how: Any) -> Residency:
    """The first of some files in modules of its own, the others in the library."""
    loaded, facts = reading.read(files[0], how.pop("dtype", torch.float32))
    return Residency(loaded, facts=facts, source=GivenFiles(*files), **{"ram_bytes": 2**30, **how})
