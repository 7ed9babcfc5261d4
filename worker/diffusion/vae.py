"""From latents to pixels. One image at a time: decoding is what blows up memory first when batched."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.errors import RenderFailed
from worker.diffusion.checkpoint import Checkpoint


def decode(checkpoint: Checkpoint, x: Tensor) -> NDArray[np.uint8]:
    """Decode latents (1, 4, height/8, width/8) into pixels (height, width, 3) uint8.

    Raises `RenderFailed` when the numbers have blown up, instead of returning a black image.
    """
    vae = checkpoint.vae
    latents = (x / vae.config.scaling_factor).to(checkpoint.dtype)
    image: Tensor = vae.decode(latents, return_dict=False)[0][0].float()
    if not torch.isfinite(image).all():
        raise RenderFailed(
            "The image came out as not-a-number; the checkpoint may be damaged or unfit for half precision."
        )
    pixels = (image / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    array: NDArray[np.uint8] = pixels.permute(1, 2, 0).cpu().numpy()
    return array
