"""Previews: rough, but of the right colours."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from safetensors.torch import save_file

from shared.errors import BadWeights
from tests.studio import CPU, demo, spec
from worker.diffusion.preview import Previewer, load_tiny, to_jpeg
from worker.engine.runner import DiffusionRunner


def test_a_preview_shows_the_colours_of_the_picture() -> None:
    runner = DiffusionRunner.of(demo())
    image = runner.begin(runner.draft(spec(seed=1, steps=10)))
    shown = []
    while not image.is_over:
        runner.denoise([image])
        shown.append(runner.preview(image).pixels())
    picture = Image.fromarray(runner.decode(image).pixels())
    small = np.asarray(picture.resize((16, 16), Image.Resampling.BOX)).astype(int)
    assert shown[-1].shape == (16, 16, 3)
    errors = [float(np.abs(small - preview).mean()) for preview in shown]
    assert errors[-1] < 40
    assert errors[-1] < errors[0]


def test_a_decoder_shows_more(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "taesd.safetensors"
    tiny: Any = AutoencoderTiny()
    save_file(tiny.state_dict(), path)
    previewer = Previewer(demo().vae, load_tiny(path, CPU, torch.float32))
    assert previewer.preview(torch.zeros(1, 4, 8, 8)).pixels().shape == (64, 64, 3)


def test_what_is_no_decoder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"decoder.x": torch.zeros(1)}, path)
    with pytest.raises(BadWeights, match=r"other\.safetensors: cannot be loaded as a TAESD decoder"):
        load_tiny(path, CPU, torch.float32)


def test_a_jpeg_keeps_the_proportions() -> None:
    jpeg = Image.open(io.BytesIO(to_jpeg(np.zeros((12, 8, 3), dtype=np.uint8), 96)))
    assert (jpeg.size, jpeg.format) == ((64, 96), "JPEG")
