"""Decoding: one image at a time, never a black picture for numbers that have blown up; VAEs from files of any layout."""

import copy
import weakref
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from shared.errors import BadWeights, NotANumber, OutOfMemory, WeightsMissing
from shared.files.weights import Kind, Shelf
from tests.support.studio import DEMO, demo
from tests.support.walking import SAME, distance
from worker.diffusion import img2img
from worker.diffusion import vae as vaes
from worker.diffusion.latent_space import LatentSpace, squares
from worker.diffusion.vae import OwnVae, VaeShelf, begin_decode, needs_tiling, tiling, within_memory

OWN = OwnVae("demo", "demo", lambda: demo().vae)


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

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def decode(self, _x: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        overflows = self.broken or self.dtype == torch.float16
        return (torch.full((1, 3, 8, 8), float("nan") if overflows else 1.0),)

    def encode(self, x: torch.Tensor) -> Any:
        assert x.dtype == self.dtype
        mean = torch.full((1, 4, 8, 8), torch.nan if self.broken else 1.0, dtype=self.dtype)
        # Finite itself, unlike some of the samples.
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=torch.full_like(mean, 2e4)))


def test_not_a_number_is_decoded_once_more_in_full_precision() -> None:
    vae = Fragile(broken=False)
    assert (begin_decode(vae, latents()).pixels() == 255).all()
    assert vae.dtype == torch.float16


def test_not_a_number_in_full_precision_too_is_a_failure_and_no_black_picture() -> None:
    with pytest.raises(NotANumber):
        begin_decode(Fragile(broken=True), latents()).pixels()


def test_memory_that_runs_out_in_full_precision_is_told_as_such() -> None:
    def decode(_x: torch.Tensor, **_: Any) -> None:
        raise torch.OutOfMemoryError("no more")

    fragile = Fragile(broken=False)
    developing = begin_decode(fragile, latents())
    fragile.decode = decode  # type: ignore[assignment]
    with pytest.raises(OutOfMemory):
        developing.pixels()


@pytest.mark.parametrize("broken", [False, True])
def test_an_init_image_is_encoded_once_more_in_full_precision(broken: bool) -> None:
    pixels = np.full((64, 64, 3), 200, np.uint8)
    if broken:
        with pytest.raises(NotANumber, match="init image"):
            img2img.Encoding(Fragile(broken=True), pixels).latents(None)
    else:
        assert (img2img.Encoding(Fragile(broken=False), pixels).latents(None) == demo().vae.config.scaling_factor).all()


@pytest.mark.parametrize("broken", [False, True])
def test_images_of_one_picture_have_it_encoded_once_more_together(
    broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mended: list[Any] = []

    def in_full_precision(vae: Any) -> Any:
        mended.append(vae)
        return vaes.in_full_precision(vae)

    monkeypatch.setattr(img2img, "in_full_precision", in_full_precision)
    encoding = img2img.Encoding(Fragile(broken=broken), np.full((64, 64, 3), 200, np.uint8))
    for _ in range(3):
        with pytest.raises(NotANumber, match="init image") if broken else nullcontext():
            assert encoding.latents(None).isfinite().all()
    assert len(mended) == 1


def test_latents_that_are_not_numbers_fail() -> None:
    with pytest.raises(NotANumber):
        begin_decode(demo().vae, latents() * float("nan")).pixels()


def test_only_large_pictures_are_decoded_in_tiles() -> None:
    assert not needs_tiling(64, 64, None)
    assert not needs_tiling(128, 128, 24 * 2**30)
    assert needs_tiling(256, 256, 24 * 2**30)
    assert needs_tiling(96, 96, 6 * 2**30)


@torch.inference_mode()
def test_tiles_show_the_picture_that_a_whole_decode_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = demo().vae
    circle = (np.hypot(*np.mgrid[-1:1:640j, -1:1:640j]) < 0.6)[..., None]
    picture = np.where(circle, (220, 40, 40), (40, 40, 220)).astype(np.uint8)
    signed = torch.from_numpy(picture / 127.5 - 1).float().permute(2, 0, 1)[None]
    x = vae.encode(signed).latent_dist.mean * vae.config.scaling_factor
    whole = begin_decode(vae, x).pixels().astype(int)
    monkeypatch.setattr(vaes, "TILED_LATENT_PIXELS", 64 * 64)
    tiled = begin_decode(vae, x).pixels().astype(int)
    difference = np.abs(whole - tiled)
    assert 0 < difference.mean() < 4


def test_tiling_ends_with_the_picture_that_needs_it() -> None:
    vae = demo().vae
    with tiling(vae, None):
        assert not vae.use_tiling
    with tiling(vae, 32):
        assert vae.use_tiling
    assert not vae.use_tiling
    with pytest.raises(RuntimeError, match="channels"):
        begin_decode(vae, torch.zeros(1, 3, 64, 300))
    assert not vae.use_tiling


class Tight:
    """A VAE on a device whose memory is nearly full: more than so many latents at once do not fit."""

    def __init__(self, fits: int) -> None:
        self._vae = demo().vae
        self._fits = fits
        self.tried: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vae, name)

    def decode(self, x: torch.Tensor, **options: Any) -> Any:
        side = self._vae.tile_latent_min_size if self._vae.use_tiling else max(x.shape[2:])
        self.tried.append(side)
        if side > self._fits:
            raise torch.OutOfMemoryError("no more")
        return self._vae.decode(x, **options)

    def enable_tiling(self) -> None:
        self._vae.tile_latent_min_size, self._vae.tile_sample_min_size = (
            self.tile_latent_min_size,
            self.tile_sample_min_size,
        )
        self._vae.enable_tiling()


@pytest.mark.parametrize(("fits", "tried"), [(80, [80]), (64, [80, 64]), (40, [80, 64, 32])])
def test_a_decode_that_does_not_fit_is_done_in_tiles(fits: int, tried: list[int]) -> None:
    tight = Tight(fits)
    assert begin_decode(tight, latents(80)).pixels().shape == (640, 640, 3)
    assert tight.tried == tried
    assert not tight.use_tiling


def test_a_decode_of_which_no_tile_fits_fails() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        begin_decode(Tight(16), latents(80))


def test_memory_that_a_failed_decode_held_is_free_before_the_next_try() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def act() -> bool:
        activations = torch.zeros(8)
        if not held:
            held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("no more")
        return held[0]() is None

    assert within_memory(demo().vae, 80, 80, act)


@pytest.mark.parametrize("layout", ["diffusers", "diffusers, older names", "original"])
def test_a_vae_loads_from_any_layout(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "mine.safetensors"
    if layout == "diffusers":
        save_file(demo().vae.state_dict(), path)
    elif layout == "diffusers, older names":
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        weights = demo().vae.state_dict()
        for now, before in names.items():
            weights = {name.replace(f".{now}.", f".{before}."): tensor for name, tensor in weights.items()}
        save_file(weights, path)
    else:
        prefix = "first_stage_model."
        weights = {
            name.removeprefix(prefix): tensor for name, tensor in load_file(DEMO).items() if name.startswith(prefix)
        }
        save_file(weights, path)
    shelf = VaeShelf(Shelf(Kind.VAE, tmp_path))
    vae = shelf.get("mine", demo(), OWN)
    assert shelf.get("mine", demo(), OWN) is vae
    assert (begin_decode(vae, latents()).pixels() == begin_decode(demo().vae, latents()).pixels()).all()


def test_a_vae_that_does_not_fit_is_not_called_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job is tried again, and nobody mends a file that is well."""

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("no more")

    save_file(demo().vae.state_dict(), tmp_path / "mine.safetensors")
    monkeypatch.setattr(AutoencoderKL, "to", full)
    with pytest.raises(OutOfMemory, match="The VAE mine does not fit"):
        VaeShelf(Shelf(Kind.VAE, tmp_path)).get("mine", demo(), OWN)


def test_a_vae_of_another_architecture_is_refused(tmp_path: Path) -> None:
    weights = {f"{half}.conv_in.weight": torch.zeros(4, 4, 3, 3) for half in ("encoder", "decoder")}
    save_file(weights, tmp_path / "alien.safetensors")
    with pytest.raises(BadWeights, match=r"alien\.safetensors: cannot be loaded as a VAE"):
        VaeShelf(Shelf(Kind.VAE, tmp_path)).get("alien", demo(), OWN)


@pytest.mark.parametrize(
    ("name", "metadata"), [("sdxl_vae", {}), ("fix", {"modelspec.architecture": "stable-diffusion-xl-v1-base/vae"})]
)
def test_a_vae_that_says_it_is_sdxls_is_refused(tmp_path: Path, name: str, metadata: dict[str, str]) -> None:
    save_file(demo().vae.state_dict(), tmp_path / f"{name}.safetensors", metadata)
    with pytest.raises(BadWeights, match="it was made for SDXL"):
        VaeShelf(Shelf(Kind.VAE, tmp_path)).get(name, demo(), OWN)


def foreign() -> Any:
    """A VAE in float64 that gives back every picture as the demo's does, and by other latents, as SDXL's are to SD1.5's."""
    vae = copy.deepcopy(demo().vae).double()
    turned = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(3)).double())[0]
    quant, post = vae.quant_conv, vae.post_quant_conv
    for rows in (slice(0, 4), slice(4, 8)):  # means, and variances that do not matter
        quant.weight[rows] = torch.einsum("ij,jkhw->ikhw", turned, quant.weight[rows])
        quant.bias[rows] = turned @ quant.bias[rows]
    post.weight.copy_(torch.einsum("ijhw,kj->ikhw", post.weight, turned))
    return vae


@torch.inference_mode()
def test_a_vae_of_other_latents_is_refused_whatever_it_is_called(tmp_path: Path) -> None:
    other, own, picture = foreign(), copy.deepcopy(demo().vae).double(), squares().double()
    shown, expected = (vae.decode(vae.encode(picture).latent_dist.mean)[0] for vae in (other, own))
    assert distance(shown, expected) < SAME
    save_file(other.float().state_dict(), tmp_path / "mine.safetensors")
    with pytest.raises(BadWeights, match=r"mine\.safetensors: .*shows this checkpoint's latents as something else"):
        VaeShelf(Shelf(Kind.VAE, tmp_path)).get("mine", demo(), OWN)


@torch.inference_mode()
def test_relatives_of_a_vae_and_those_that_half_precision_cannot_tell_are_taken() -> None:
    space, finer, brighter, broken = LatentSpace.of(demo().vae), *(copy.deepcopy(demo().vae) for _ in range(3))
    generator = torch.Generator().manual_seed(1)
    for weight in finer.decoder.parameters():
        weight.mul_(1 + 0.02 * torch.randn(weight.shape, generator=generator))
    brighter.decoder.conv_out.bias.add_(0.3)
    broken.decoder.conv_out.bias.fill_(float("nan"))
    assert [space.is_read_by(vae) for vae in (demo().vae, finer, brighter, broken)] == [True] * 4


def test_the_last_two_vaes_stay_in_memory(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        save_file(demo().vae.state_dict(), tmp_path / f"{name}.safetensors")
    shelf = VaeShelf(Shelf(Kind.VAE, tmp_path))
    a, b = shelf.get("a", demo(), OWN), shelf.get("b", demo(), OWN)
    assert shelf.get("a", demo(), OWN) is a
    shelf.get("c", demo(), OWN)
    assert shelf.get("a", demo(), OWN) is a
    assert shelf.get("b", demo(), OWN) is not b


def test_a_vae_that_is_not_there_is_another_workers(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match="no vae named 'gone'"):
        VaeShelf(Shelf(Kind.VAE, tmp_path)).get("gone", demo(), OWN)
