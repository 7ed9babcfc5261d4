"""The first noise of an image."""

import torch
from torch import Tensor

LATENT_CHANNELS = 4
PIXELS_PER_LATENT = 8


def initial(generator: torch.Generator, *, width: int, height: int) -> Tensor:
    """Draw unit noise, (1, 4, height/8, width/8) float32 on the CPU, in the order in which diffusers draws it."""
    shape = (1, LATENT_CHANNELS, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
    return torch.randn(shape, generator=generator, dtype=torch.float32)
