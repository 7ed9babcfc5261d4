"""Names of a checkpoint's tensors: by which name in a single file of the original layout each weight of the modules is stored.

The library's converters know it. They are given numbers in the place of weights, and what becomes of the numbers tells.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from torch import Tensor

TEXT_PREFIX = "text_model."


def stored_names(dims: Mapping[str, int], config_dir: Path) -> dict[str, dict[str, str]]:
    """Return each part's names in the file by those in the module. `dims` has the dimensions of the file's tensors."""
    names = list(dims)
    numbers = {name: torch.full((1,) * dims[name], float(index)) for index, name in enumerate(names)}
    unet = convert_ldm_unet_checkpoint(dict(numbers), _config(config_dir, "unet"))
    vae = convert_ldm_vae_checkpoint(dict(numbers), _config(config_dir, "vae"))
    text_encoder = convert_ldm_clip_checkpoint(dict(numbers))
    # Transformers before and after 5.6: the layers lie in `text_model` or in the encoder itself.
    text_encoder |= {name.removeprefix(TEXT_PREFIX): number for name, number in text_encoder.items()}
    return {
        "unet": _traced(unet, names),
        "vae": _traced(vae, names),
        "text_encoder": _traced(text_encoder, names),
    }


def _traced(converted: Mapping[str, Tensor], names: list[str]) -> dict[str, str]:
    return {name: names[int(number.flatten()[0])] for name, number in converted.items()}


def _config(folder: Path, part: str) -> Any:
    return json.loads((folder / part / "config.json").read_bytes())
