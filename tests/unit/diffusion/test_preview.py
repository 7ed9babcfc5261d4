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
from tests.support.studio import CPU, demo, spec
from worker.diffusion.preview import Previewer, load_tiny
from worker.diffusion.vae import to_host
from worker.engine.runner import DiffusionRunner
from worker.slots.previews import to_jpeg


def test_a_preview_shows_the_colours_of_the_picture() -> None:
    runner = DiffusionRunner.of(demo())
    image = runner.prepare(runner.draft(spec(seed=1, steps=10))).result()
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


@pytest.mark.parametrize("layout", ["diffusers", "its author's", "folder"])
def test_a_decoder_shows_more(tmp_path: Path, layout: str) -> None:
    torch.manual_seed(0)
    tiny: Any = AutoencoderTiny()
    weights = tiny.state_dict()
    if layout == "its author's":  # whose decoder begins with a layer without weights
        weights = {f"{int(name.split('.')[0]) + 1}.{name.split('.', 1)[1]}": tensor for name, tensor in decoder(tiny)}
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    path = tmp_path if layout == "folder" else tmp_path / "diffusion_pytorch_model.safetensors"
    x = torch.randn(1, 4, 8, 8)
    shown = Previewer(demo().vae, load_tiny(path, CPU, torch.float32)).preview(x).pixels()
    with torch.inference_mode():
        expected = to_host(tiny.decode(x, return_dict=False)[0][0], None).pixels()
    assert shown.shape == (64, 64, 3)
    assert (shown == expected).all()


def decoder(tiny: Any) -> list[tuple[str, torch.Tensor]]:
    return list(tiny.decoder.layers.state_dict().items())


def test_what_is_not_a_number_is_shown_gray() -> None:
    x = torch.full((1, 4, 2, 2), float("nan"))
    assert (Previewer(demo().vae).preview(x).pixels() == 128).all()


def test_what_is_no_decoder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"decoder.x": torch.zeros(1)}, path)
    with pytest.raises(BadWeights, match=r"other\.safetensors: cannot be loaded as a TAESD decoder"):
        load_tiny(path, CPU, torch.float32)


def test_a_jpeg_keeps_the_proportions() -> None:
    jpeg = Image.open(io.BytesIO(to_jpeg(np.zeros((12, 8, 3), dtype=np.uint8), 96)))
    assert (jpeg.size, jpeg.format) == ((64, 96), "JPEG")
