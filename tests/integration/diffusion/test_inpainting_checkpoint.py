"""A 9-channel inpainting checkpoint: the demo with five more inputs that do nothing, or let the mask through."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared.files import checkpoints
from shared.vocabulary.params import Upscaler
from tests.support.studio import demo, spec, widened
from worker.engine.engine import run_alone
from worker.engine.request import Start
from worker.engine.runner import DiffusionRunner

SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 4}


def start() -> Start:
    pixels = np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    mask = np.zeros((64, 64), dtype=np.float32)
    mask[:, 32:] = 1
    return Start(pixels, mask)


def test_inputs_that_do_nothing_change_nothing(tmp_path: Path) -> None:
    checkpoint = widened(tmp_path, 0.0)
    assert checkpoint.is_inpainting
    assert checkpoints.inspect(tmp_path / "inpainting.safetensors").in_channels == 9
    second = spec(width=96, height=96, steps=4, last=2, upscaler=Upscaler.LATENT).passes[0]
    for wanted in (spec(**SMALL), spec(second, **SMALL)):
        ours = run_alone(DiffusionRunner.of(checkpoint), wanted).astype(int)
        assert np.abs(ours - run_alone(DiffusionRunner.of(demo()), wanted)).max() <= 1


@pytest.mark.parametrize("weight", [0.0, 0.05])
def test_the_mask_reaches_the_unet(tmp_path: Path, weight: float) -> None:
    runner = DiffusionRunner.of(widened(tmp_path, weight))
    image = runner.prepare(runner.draft(spec(start=start(), last=3, **SMALL))).result()
    assert image.extra is not None
    mask = image.extra[0, 0]
    assert (mask[:, :4] == 0).all()
    assert (mask[:, 4:] == 1).all()
    blind = run_alone(DiffusionRunner.of(widened(tmp_path / "blind", 0.0)), spec(start=start(), last=3, **SMALL))
    seeing = run_alone(runner, spec(start=start(), last=3, **SMALL))
    assert (blind != seeing).any() == bool(weight)


def test_images_of_one_picture_have_it_encoded_once_whole_and_once_masked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, pictures = widened(tmp_path, 0.05), []
    encode = checkpoint.vae.encode

    def counted(picture: torch.Tensor) -> Any:
        pictures.append(picture)
        return encode(picture)

    monkeypatch.setattr(checkpoint.vae, "encode", counted)
    runner, shared = DiffusionRunner.of(checkpoint), start()
    one, two = (
        runner.prepare(runner.draft(spec(start=shared, last=3, seed=seed, **SMALL))).result() for seed in (1, 2)
    )
    assert len(pictures) == 2
    assert not torch.equal(pictures[0], pictures[1])
    assert one.extra is not None
    assert two.extra is not None
    assert torch.equal(one.extra[:, 0], two.extra[:, 0])
    assert not torch.equal(one.extra[:, 1:], two.extra[:, 1:])  # each has its own sample
