"""The noise of an image, all drawn at once and on the CPU: a seed means the same on every device and in every batch."""

import torch
from torch import Tensor

LATENT_CHANNELS = 4
PIXELS_PER_LATENT = 8


def draw(seed: int, *, width: int, height: int, fresh: int) -> tuple[Tensor, Tensor]:
    """Draw unit noise as diffusers does: first the latents to start from, then what the sampler adds, `fresh` times.

    Returns (1, 4, height/8, width/8) and (fresh, 1, 4, height/8, width/8), both float32.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (1, LATENT_CHANNELS, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
    first = torch.randn(shape, generator=generator, dtype=torch.float32)
    later = [torch.randn(shape, generator=generator, dtype=torch.float32) for _ in range(fresh)]
    return first, torch.stack(later) if later else first.new_empty(0, *shape)
