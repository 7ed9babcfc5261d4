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
TEXT_WEIGHT = "cond_stage_model.transformer.text_model.final_layer_norm.weight"
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


def distinct(folder: Path, name: str, factor: float) -> CheckpointFile:
    """Write a checkpoint that shares no part with the demo or with those of other factors."""
    return written(folder, name, {one: demo_tensors()[one] * factor for one in (UNET_WEIGHT, COLORS[0], TEXT_WEIGHT)})


def inpainting(folder: Path, name: str, mask_weight: float) -> CheckpointFile:
    """Write the demo with inputs for a mask and a masked picture; the mask's are all `mask_weight`."""
    four = demo_tensors()[UNET_WEIGHT]
    extra = four.new_zeros(four.shape[0], 5, *four.shape[2:])
    extra[:, 0] = mask_weight
    return written(folder, name, {UNET_WEIGHT: torch.cat([four, extra], dim=1)})


def residency(*files: CheckpointFile, device: torch.device = studio.CPU, **how: Any) -> Residency:
    """The first of some files in modules of its own on a device, the others in the library."""
    loaded, facts = reading.read(files[0], how.pop("dtype", torch.float32))
    of_files = {"facts": facts, "source": GivenFiles(*files), "outfit": lambda one: one.on(device)}
    return Residency(loaded.on(device), **{"ram_bytes": 2**30, **of_files, **how})
