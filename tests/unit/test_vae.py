"""Decoding: one image at a time, never a black picture for numbers that have blown up; VAEs from files of any layout."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.errors import BadWeights, NotANumber, WeightsMissing
from shared.weights import Kind, Shelf
from tests.studio import DEMO, demo
from worker.diffusion.vae import VaeShelf, begin_decode, needs_tiling


def latents(side: int = 8) -> torch.Tensor:
    return torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(1)) * 0.8


@torch.inference_mode()
def test_pixels_are_those_of_the_library() -> None:
    checkpoint = demo()
    x = latents()
    theirs = checkpoint.vae.decode(x / checkpoint.vae.config.scaling_factor, return_dict=False)[0][0]
    expected = (theirs / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    development = begin_decode(checkpoint.vae, x)
    assert development.is_ready
    assert (development.pixels() == expected).all()


class Fragile(torch.nn.Module):
    """A VAE whose half precision overflows, as some do; in fp32 it decodes well unless it is broken for good."""

    def __init__(self, *, broken: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float16), requires_grad=False)
        self.broken = broken
        self.config = demo().vae.config

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    def enable_tiling(self) -> None: ...

    def disable_tiling(self) -> None: ...

    def decode(self, _x: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        overflows = self.broken or self.dtype == torch.float16
        return (torch.full((1, 3, 8, 8), float("nan") if overflows else 1.0),)


def test_not_a_number_is_decoded_once_more_in_full_precision() -> None:
    vae = Fragile(broken=False)
    assert (begin_decode(vae, latents()).pixels() == 255).all()
    assert vae.dtype == torch.float16


def test_not_a_number_in_full_precision_too_is_a_failure_and_no_black_picture() -> None:
    with pytest.raises(NotANumber):
        begin_decode(Fragile(broken=True), latents()).pixels()


def test_latents_that_are_not_numbers_fail() -> None:
    with pytest.raises(NotANumber):
        begin_decode(demo().vae, latents() * float("nan")).pixels()


def test_only_large_pictures_are_decoded_in_tiles() -> None:
    assert not needs_tiling(64, 64, None)
    assert not needs_tiling(128, 128, 24 * 2**30)
    assert needs_tiling(256, 256, 24 * 2**30)
    assert needs_tiling(96, 96, 6 * 2**30)


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_a_vae_loads_from_either_layout(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "mine.safetensors"
    if layout == "diffusers":
        save_file(demo().vae.state_dict(), path)
    else:
        prefix = "first_stage_model."
        weights = {
            name.removeprefix(prefix): tensor for name, tensor in load_file(DEMO).items() if name.startswith(prefix)
        }
        save_file(weights, path)
    shelf = VaeShelf(Shelf(Kind.VAE, tmp_path), demo())
    vae = shelf.get("mine")
    assert shelf.get("mine") is vae
    assert (begin_decode(vae, latents()).pixels() == begin_decode(demo().vae, latents()).pixels()).all()


def test_a_vae_of_another_architecture_is_refused(tmp_path: Path) -> None:
    weights = {f"{half}.conv_in.weight": torch.zeros(4, 4, 3, 3) for half in ("encoder", "decoder")}
    save_file(weights, tmp_path / "alien.safetensors")
    with pytest.raises(BadWeights, match=r"alien\.safetensors: cannot be loaded as a VAE"):
        VaeShelf(Shelf(Kind.VAE, tmp_path), demo()).get("alien")


def test_a_vae_that_is_not_there_is_another_workers(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match="no vae named 'gone'"):
        VaeShelf(Shelf(Kind.VAE, tmp_path), demo()).get("gone")
