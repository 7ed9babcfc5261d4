"""Checkpoints made from the demo one, each told from the others by the colours of its pictures.

The decoder's last layer is the one change that shows: its channels change places, and some are inverted. So a picture of a
recolored checkpoint is the demo's picture with its colours exchanged, to the rounding of a level. Another layer of the UNet is
changed too little to be seen, so that all weights of the UNet are another file's and none is shared between two of them.
"""

import shutil
from itertools import permutations, product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file, save_file

from tests.support.studio import DEMO

OUTPUT = "first_stage_model.decoder.conv_out."
UNSEEN = "model.diffusion_model.time_embed.0.bias"
Pixels = npt.NDArray[np.uint8]

# 48 ways: where each channel comes from, and whether it is inverted. The first changes nothing.
COLORINGS = tuple(product(permutations(range(3)), product((1, -1), repeat=3)))


def name(index: int) -> str:
    """Name a recolored checkpoint."""
    return f"recolored-{index:02}"


def write(folder: Path, index: int) -> Path:
    """Write a recolored checkpoint, with the description of the demo's sizes beside it."""
    weights = load_file(DEMO)
    channels, signs = COLORINGS[index]
    for part in ("weight", "bias"):
        layer = weights[OUTPUT + part]
        sign = layer.new_tensor(signs).view(-1, *[1] * (layer.ndim - 1))
        weights[OUTPUT + part] = (layer[list(channels)] * sign).contiguous()
    weights[UNSEEN][0] += index * 2**-10
    path = folder / f"{name(index)}.safetensors"
    save_file(weights, path, {"format": "pt"})
    config = path.with_suffix(".config")
    if not config.exists():
        shutil.copytree(DEMO.with_suffix(".config"), config)
    return path


def shown(picture: Pixels, index: int) -> Pixels:
    """Return the picture that a recolored checkpoint makes where the demo makes this one (height, width, 3)."""
    channels, signs = COLORINGS[index]
    recolored = picture[..., list(channels)]
    return np.where(np.asarray(signs) == 1, recolored, 255 - recolored)


def twice(first: int, second: int) -> int:
    """Return the one coloring that is the second on top of the first."""
    colors = np.arange(3 * 256, dtype=np.uint16).reshape(1, 256, 3).astype(np.uint8)
    return seen(shown(shown(colors, first), second), colors)


def seen(picture: Pixels, demos: Pixels) -> int:
    """Return which checkpoint made a picture, by the demo's picture of the same job."""
    off = [np.abs(picture.astype(int) - shown(demos, index)).mean() for index in range(len(COLORINGS))]
    return int(np.argmin(off))
