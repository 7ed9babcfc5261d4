"""Test whether a VAE shares a checkpoint's latent space: SDXL's VAE has SD1.5's tensors, by name and shape, but not its latents.

A picture of coloured squares, encoded by the checkpoint's VAE, must be decoded alike by both. By the published colours of both
latent spaces, SDXL's decoding of such squares correlates with them below 0.1.
"""

import copy
from typing import Any, Self

import torch
from torch import Tensor

SQUARE_PX = 16
SQUARES = 4  # a side
# VAEs of one latent space differ in detail and colour, of the order of 0.01; those of two have next to nothing in common.
LIKENESS = 0.5


class LatentSpace:
    """A VAE's latents of the test picture, and its decoding of them."""

    def __init__(self, latents: Tensor, shown: Tensor) -> None:
        self._latents = latents
        self._shown = shown

    @classmethod
    @torch.inference_mode()
    def of(cls, vae: Any) -> Self:
        """Encode and decode the squares."""
        latents = vae.encode(squares().to(vae.device, vae.dtype)).latent_dist.mean
        return cls(latents, _decoded(vae, latents))

    @torch.inference_mode()
    def is_read_by(self, vae: Any) -> bool:
        """Whether another VAE on the same device decodes these latents alike; also true if it decodes to a constant or NaN."""
        pictures = torch.stack([self._shown, _decoded(vae, self._latents)])
        # A negative is no other space: whoever trained such a decoder meant the same latents.
        return not abs(float(torch.corrcoef(pictures)[0, 1])) < LIKENESS


def squares() -> Tensor:
    """Return squares of the eight corners of the colour cube, each twice, (1, 3, height, width) float32 of -1 … 1."""
    corners = torch.tensor([[red, green, blue] for red in (-1, 1) for green in (-1, 1) for blue in (-1, 1)])
    order = torch.randperm(SQUARES * SQUARES, generator=torch.Generator().manual_seed(0))
    colors = 0.8 * corners.repeat(2, 1)[order].T.reshape(1, 3, SQUARES, SQUARES)
    return colors.repeat_interleave(SQUARE_PX, 2).repeat_interleave(SQUARE_PX, 3)


def _decoded(vae: Any, latents: Tensor) -> Tensor:
    shown: Tensor = vae.decode(latents, return_dict=False)[0].float().clamp(-1, 1).flatten()
    if vae.dtype == torch.float32 or bool(torch.isfinite(shown).all()):
        return shown
    # SDXL's is known to overflow in half precision.
    return _decoded(copy.deepcopy(vae).float(), latents.float())
