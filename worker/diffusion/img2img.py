"""VAE encoding of pictures and masks, equal to diffusers' image-to-image and inpainting pipelines, and latent upscalers.

Noise is passed in, because diffusers draws the encoder's noise before the noise to start from.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from shared.errors import NotANumber
from shared.vocabulary.params import MaskFill, Upscaler
from worker.diffusion.noise import PIXELS_PER_LATENT
from worker.diffusion.transfer import Readback, to_device
from worker.diffusion.vae import in_full_precision, within_memory

INTERPOLATIONS: dict[Upscaler, dict[str, Any]] = {
    Upscaler.LATENT: {"mode": "bilinear"},
    Upscaler.LATENT_ANTIALIASED: {"mode": "bilinear", "antialias": True},
    Upscaler.LATENT_BICUBIC: {"mode": "bicubic"},
    Upscaler.LATENT_BICUBIC_ANTIALIASED: {"mode": "bicubic", "antialias": True},
    Upscaler.LATENT_NEAREST: {"mode": "nearest"},
    Upscaler.LATENT_NEAREST_EXACT: {"mode": "nearest-exact"},
}


class Encoding:
    """Asynchronous VAE encoding of a picture. Any number of images may share it."""

    def __init__(self, vae: Any, pixels: NDArray[np.uint8], *, hidden: NDArray[np.float32] | None = None) -> None:
        """Launch the encoding of pixels (height, width, 3), gray where the mask `hidden` (height, width) is 1; does not wait."""
        picture = _signed(to_device(torch.from_numpy(pixels), vae.device))
        if hidden is not None:
            picture = picture * (1 - to_device(_cut(hidden), vae.device))
        # For as long as it may have to be encoded once more: large ones take 50 MB.
        self._picture: Tensor | None = picture
        self._vae = vae
        self._launch(vae, picture)

    @property
    def is_ready(self) -> bool:
        """Whether `latents` would return without waiting for the device."""
        return self._finite.is_ready

    def wait(self) -> None:
        """Block until the device has encoded it."""
        self._finite.wait()

    def latents(self, noise: Tensor | None) -> Tensor:
        """Return scaled latents (1, 4, height/8, width/8) float32, on the device.

        `noise` is unit noise of their shape that samples the posterior; None takes its mean. An encoding that overflowed in half
        precision is repeated in fp32, once for all callers; if that fails, too, raises `NotANumber`.
        """
        if self._picture is not None:
            self._mend(self._picture)
            self._picture = None
        if not self._is_finite():
            raise NotANumber("The VAE turned the init image into not-a-number.")
        mean, std = self._mean, self._std
        sample = mean if noise is None else mean + std * to_device(noise, mean.device).to(mean.dtype)
        latents: Tensor = (self._vae.config.scaling_factor * sample).float()
        return latents

    def _mend(self, picture: Tensor) -> None:
        if not self._is_finite() and self._vae.dtype != torch.float32:
            self._launch(in_full_precision(self._vae), picture)

    def _launch(self, vae: Any, picture: Tensor) -> None:
        self._mean, self._std = _posterior(vae, picture)
        # Of all that a sample can be: no noise is drawn that lies beyond eight deviations.
        self._finite = Readback((self._mean.abs() + 8 * self._std).isfinite().all())

    def _is_finite(self) -> bool:
        (flag,) = self._finite.tensors()
        return bool(flag)


def latent_mask(mask: NDArray[np.float32], device: torch.device) -> Tensor:
    """Return a mask (height, width) for latents, (1, 1, height/8, width/8) of 0 and 1, 1 where they are painted.

    As diffusers: cut at the middle, then the first pixel of every eight by eight. A1111 takes their mean and rounds that, so its
    mask may differ by one latent along an edge.
    """
    return to_device(_cut(mask)[..., ::PIXELS_PER_LATENT, ::PIXELS_PER_LATENT].contiguous(), device)


def filled(latents: Tensor, mask: NDArray[np.float32] | None, fill: MaskFill, noise: Tensor) -> Tensor:
    """Replace masked latents (1, 4, height/8, width/8) by unit noise for `NOISE`, by zeros for `NOTHING`; else keep them."""
    if mask is None or fill not in {MaskFill.NOISE, MaskFill.NOTHING}:
        return latents
    painted = latent_mask(mask, latents.device)
    kept = latents * (1 - painted)
    return kept + to_device(noise, latents.device) * painted if fill is MaskFill.NOISE else kept


def masked_encoding(vae: Any, pixels: NDArray[np.uint8], mask: NDArray[np.float32] | None) -> Encoding:
    """Launch the encoding of a picture with the masked part gray, for an inpainting checkpoint; all gray without a mask."""
    return Encoding(vae, pixels, hidden=np.ones(pixels.shape[:2], np.float32) if mask is None else mask)


def inpainting_channels(masked: Tensor, mask: NDArray[np.float32] | None) -> Tensor:
    """Return the extra input channels of an inpainting checkpoint, mask and masked picture, (1, 5, height/8, width/8)."""
    painted = torch.ones_like(masked[:, :1]) if mask is None else latent_mask(mask, masked.device)
    return torch.cat([painted, masked], dim=1)


def upscale_latents(x: Tensor, *, width: int, height: int, upscaler: Upscaler) -> Tensor:
    """Scale latents to a size in pixels by one of A1111's latent upscalers; `LANCZOS` is none of them."""
    size = (height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
    return functional.interpolate(x, size=size, **INTERPOLATIONS[upscaler])


def _posterior(vae: Any, picture: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, (1, 4, height/8, width/8) in the VAE's precision."""
    height, width = picture.shape[2] // PIXELS_PER_LATENT, picture.shape[3] // PIXELS_PER_LATENT
    picture = picture.to(vae.dtype)
    distribution = within_memory(vae, height, width, lambda: vae.encode(picture).latent_dist)
    return distribution.mean, distribution.std


def _signed(pixels: Tensor) -> Tensor:
    """Bring pixels to -1 … 1, (1, 3, height, width) float32, with diffusers' roundings and memory order: both decide bits."""
    # A number would be turned into its reciprocal on a GPU, which rounds differently.
    white = torch.full((), 255.0, device=pixels.device)
    unit = (pixels[None].float() / white).permute(0, 3, 1, 2)
    return 2.0 * unit - 1.0


def _cut(mask: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy((mask >= 0.5).astype(np.float32))[None, None]
