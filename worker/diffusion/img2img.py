"""Pictures and masks as latents, equal to what diffusers' image-to-image and inpainting pipelines make of them.

Random numbers come in as arguments: diffusers draws the encoder's noise before the noise to start from.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from shared.errors import NotANumber
from shared.params import MaskFill, Upscaler
from worker.diffusion.noise import PIXELS_PER_LATENT
from worker.diffusion.transfer import sent
from worker.diffusion.vae import in_full_precision, within_memory

INTERPOLATIONS: dict[Upscaler, dict[str, Any]] = {
    Upscaler.LATENT: {"mode": "bilinear"},
    Upscaler.LATENT_ANTIALIASED: {"mode": "bilinear", "antialias": True},
    Upscaler.LATENT_BICUBIC: {"mode": "bicubic"},
    Upscaler.LATENT_BICUBIC_ANTIALIASED: {"mode": "bicubic", "antialias": True},
    Upscaler.LATENT_NEAREST: {"mode": "nearest"},
    Upscaler.LATENT_NEAREST_EXACT: {"mode": "nearest-exact"},
}


def encode(vae: Any, pixels: NDArray[np.uint8], noise: Tensor | None) -> Tensor:
    """Encode pixels (height, width, 3) on the VAE's device into scaled latents (1, 4, height/8, width/8) float32.

    `noise` is unit noise of the latents' shape that picks a sample of the posterior; None takes its mean. What blows up in half
    precision is encoded once more in fp32, then raises `NotANumber`.
    """
    return _encoded(vae, _signed(pixels), noise)


def latent_mask(mask: NDArray[np.float32], device: torch.device) -> Tensor:
    """Return a mask (height, width) for latents, (1, 1, height/8, width/8) of 0 and 1, 1 where they are painted.

    As diffusers: cut at the middle, then the first pixel of every eight by eight. A1111 takes their mean and rounds that, so its
    mask may differ by one latent along an edge.
    """
    return sent(_cut(mask)[..., ::PIXELS_PER_LATENT, ::PIXELS_PER_LATENT].contiguous(), device)


def filled(latents: Tensor, mask: NDArray[np.float32] | None, fill: MaskFill, noise: Tensor) -> Tensor:
    """Replace masked latents (1, 4, height/8, width/8) by unit noise or by zeros where the fill says so."""
    if mask is None or fill not in {MaskFill.NOISE, MaskFill.NOTHING}:
        return latents
    painted = latent_mask(mask, latents.device)
    kept = latents * (1 - painted)
    return kept + sent(noise, latents.device) * painted if fill is MaskFill.NOISE else kept


def inpainting_channels(
    vae: Any, pixels: NDArray[np.uint8], mask: NDArray[np.float32] | None, noise: Tensor | None
) -> Tensor:
    """Return what an inpainting checkpoint reads beside the latents: mask and masked picture, (1, 5, height/8, width/8) float32.

    Masked pixels are gray in the masked picture; without a mask all are. Raises `NotANumber`.
    """
    if mask is None:
        mask = np.ones(pixels.shape[:2], np.float32)
    masked = _encoded(vae, _signed(pixels) * (1 - _cut(mask)), noise)
    return torch.cat([latent_mask(mask, masked.device), masked], dim=1)


def open_channels(vae: Any, *, width: int, height: int) -> Tensor:
    """Return what an inpainting checkpoint reads when there is no picture at all, (1, 5, height/8, width/8) float32."""
    return inpainting_channels(vae, np.zeros((height, width, 3), np.uint8), None, None)


def upscale_latents(x: Tensor, *, width: int, height: int, upscaler: Upscaler) -> Tensor:
    """Scale latents to a size in pixels by one of A1111's latent upscalers, never `LANCZOS`."""
    size = (height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
    return functional.interpolate(x, size=size, **INTERPOLATIONS[upscaler])


def _encoded(vae: Any, image: Tensor, noise: Tensor | None) -> Tensor:
    height, width = image.shape[2] // PIXELS_PER_LATENT, image.shape[3] // PIXELS_PER_LATENT
    pixels = sent(image, vae.device).to(vae.dtype)
    posterior = within_memory(vae, height, width, lambda: vae.encode(pixels).latent_dist)
    mean = posterior.mean
    sample = mean if noise is None else mean + posterior.std * sent(noise, vae.device).to(vae.dtype)
    latents: Tensor = (vae.config.scaling_factor * sample).float()
    if bool(torch.isfinite(latents).all()):  # waits for the device
        return latents
    if vae.dtype != torch.float32:
        return _encoded(in_full_precision(vae), image, noise)
    raise NotANumber("The VAE turned the init image into not-a-number.")


def _signed(pixels: NDArray[np.uint8]) -> Tensor:
    """Bring pixels to -1 … 1, (1, 3, height, width) float32, with diffusers' roundings and memory order: both decide bits."""
    unit = torch.from_numpy(pixels[None].astype(np.float32) / 255.0).permute(0, 3, 1, 2)
    return 2.0 * unit - 1.0


def _cut(mask: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy((mask >= 0.5).astype(np.float32))[None, None]
