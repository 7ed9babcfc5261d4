"""Previews of unfinished images: an affine map from latents to small RGB, nearly free, or a TAESD decoder if configured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from shared.errors import BadWeights
from worker.diffusion.vae import PixelReadback, to_host

# What each channel of SD1.5's latents means for red, green and blue in -1 … 1; facts measured on its VAE.
SD15_COLORS = (
    (0.3512, 0.2297, 0.3227),
    (0.3250, 0.4974, 0.2350),
    (-0.2829, 0.1762, 0.2721),
    (-0.2120, -0.2616, -0.7177),
)
SD15_CHANNELS = [128, 256, 512, 512]
SAMPLE_SIDE = 8  # latents to a side of the pictures that a map is fitted to
SAMPLES = 12
TINY_FILE = "diffusion_pytorch_model.safetensors"


class Previewer:
    """Previews latents of one checkpoint, by the TAESD decoder `tiny` or, without one, by an affine map of colours."""

    def __init__(self, vae: Any, tiny: Any | None = None) -> None:
        self._tiny: Any = tiny
        # On the device from the start: a copy at every preview would wait for all that the device has yet to do.
        self._map = None if tiny is not None else [part.to(vae.device) for part in color_map(vae)]

    @torch.inference_mode()
    def preview(self, x: Tensor) -> PixelReadback:
        """Start a preview of clean latents (1, 4, h, w) float32: (h, w, 3) uint8, or (8h, 8w, 3) by a decoder.

        Not-a-numbers become gray and raise nothing: decoding the finished image raises.
        """
        if self._map is None:
            image = self._tiny.decode(x.to(self._tiny.dtype), return_dict=False)[0][0].float()
        else:
            weights, offset = self._map
            image = torch.einsum("chw,cd->dhw", x[0], weights) + offset[:, None, None]
        return to_host(image.nan_to_num(), retry=None)


def color_map(vae: Any) -> tuple[Tensor, Tensor]:
    """Return the affine map from latents to colours in -1 … 1: weights (4, 3) and offset (3,) float32.

    SD1.5's is a constant. For another VAE it is a least-squares fit to decoded random smooth latents, always the same ones.
    """
    if list(vae.config.block_out_channels) == SD15_CHANNELS:
        return torch.tensor(SD15_COLORS), torch.zeros(3)
    return _fitted(vae)


def load_tiny(path: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """Load a TAESD for SD1.5 from a .safetensors file in diffusers' or its author's layout, or a folder. Raises `BadWeights`."""
    try:
        tiny: Any = AutoencoderTiny()
        file = path / TINY_FILE if path.is_dir() else path
        decoder = _decoder(safetensors.torch.load(file.read_bytes()))
        tiny.load_state_dict(decoder, strict=False)
        if missing := [name for name in tiny.decoder.state_dict() if f"decoder.{name}" not in decoder]:
            raise BadWeights(f"it has no decoder.{missing[0]}")
        return tiny.to(device, dtype).eval().requires_grad_(False)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise BadWeights(f"{path}: cannot be loaded as a TAESD decoder ({reason}).") from error


def _decoder(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a TAESD's decoder by diffusers' names. Its author's layer numbers are one higher: they count the clamp."""
    layers = {name: name.split(".", 1) for name in weights if name[:1].isdigit()}
    ours = {name: f"decoder.layers.{int(layer) - 1}.{rest}" for name, (layer, rest) in layers.items()}
    named = {ours.get(name, name): tensor for name, tensor in weights.items()}
    return {name: tensor for name, tensor in named.items() if name.startswith("decoder.")}


@torch.inference_mode()
def _fitted(vae: Any) -> tuple[Tensor, Tensor]:
    generator = torch.Generator("cpu").manual_seed(0)
    coarse = torch.randn(SAMPLES, 4, 2, 2, generator=generator)
    latents = torch.nn.functional.interpolate(coarse, size=(SAMPLE_SIDE, SAMPLE_SIDE), mode="bilinear")
    scaled = (latents / vae.config.scaling_factor).to(vae.device, vae.dtype)
    images = torch.cat([vae.decode(one, return_dict=False)[0] for one in scaled.split(1)])
    # A VAE that overflows in half precision has gray previews, and is told of when it decodes.
    images = images.float().cpu().nan_to_num()
    colors = torch.nn.functional.adaptive_avg_pool2d(images, SAMPLE_SIDE)
    inputs = latents.permute(0, 2, 3, 1).reshape(-1, 4)
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    fit = torch.linalg.lstsq(inputs, colors.permute(0, 2, 3, 1).reshape(-1, 3)).solution
    return fit[:4].clone(), fit[4].clone()
