"""Single files of SD1.5's true size and original key layout, with random weights in half precision: 2.1 GB each."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from tests.support.studio import DEMO
from worker.diffusion.checkpoint_loader import SD15_DIR
from worker.residency import heap

NOISE = 2**20 - 3  # numbers; a billion take long to draw. A prime, so that no row of a tensor is another's


def write(path: Path, seed: int = 0) -> Path:
    """Write such a file; those of two seeds share no part."""
    save_file(random_weights(seed), path)
    heap.give_back()
    return path


def random_weights(seed: int) -> dict[str, torch.Tensor]:
    """SD1.5's tensors under their original names. Each begins elsewhere in the same random numbers."""
    noise = torch.empty(NOISE).normal_(std=0.02, generator=torch.Generator().manual_seed(seed)).half()
    return {name: cut(noise, start, shape) for start, (name, shape) in enumerate(sd15_shapes().items())}


def cut(noise: torch.Tensor, start: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Return so many of the numbers from `start`, over and over."""
    times = -(-math.prod(shape) // len(noise))
    return noise.roll(-start).repeat(times)[: math.prod(shape)].reshape(shape)


def sd15_shapes() -> dict[str, tuple[int, ...]]:
    """Original name -> full-size shape.

    The demo has SD1.5's UNet and VAE tensors by name, at smaller sizes; diffusers' own converters tell which of them
    becomes which parameter, and SD1.5's configs how large that is. The text encoder keeps its names behind a prefix.
    """
    demo = load_file(DEMO)
    shapes: dict[str, tuple[int, ...]] = {}
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config("unet"))
        vae = AutoencoderKL.from_config(config("vae"))
        text_encoder = CLIPTextModel(CLIPTextConfig(**config("text_encoder")))
    for converted, module in (
        (convert_ldm_unet_checkpoint(dict(demo), config("unet")), unet),
        (convert_ldm_vae_checkpoint(dict(demo), config("vae")), vae),
    ):
        originals = {tensor.data_ptr(): name for name, tensor in demo.items()}
        full = {name: tuple(weight.shape) for name, weight in module.state_dict().items()}
        for name, tensor in converted.items():
            original = originals[tensor.data_ptr()]
            # The original VAE has its attention as 1x1 convolutions.
            shapes[original] = full[name] + (1,) * (demo[original].ndim - len(full[name]))
    prefix = "cond_stage_model.transformer.text_model."
    return shapes | {prefix + name: tuple(weight.shape) for name, weight in text_encoder.state_dict().items()}


def config(part: str) -> dict[str, Any]:
    """Return a part's config in SD1.5."""
    content: dict[str, Any] = json.loads((SD15_DIR / part / "config.json").read_text())
    return content
