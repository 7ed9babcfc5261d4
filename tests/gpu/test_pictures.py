"""Pictures from a GPU: those that a CPU draws, alone, in company, compiled or channels-last, and none that is black by accident.

What is bit-equal must be. What rounds may lie as far apart as rounding does, which is measured here against more precise numbers.
"""

import copy
import random
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from shared.files import checkpoints
from tests.gpu.card import demo
from tests.support import studio
from tests.support.company import SAMPLES, Recording, anything, in_company
from tests.support.walking import SAME, DoublePrecision, distance
from worker.diffusion import checkpoint_loader
from worker.diffusion.compiled import CompiledUNet
from worker.diffusion.vae import begin_decode
from worker.engine.engine import run_alone
from worker.engine.request import ImageSpec, Pixels
from worker.engine.runner import DiffusionRunner

IMAGES = 60
LEVEL = 0.5  # of gray, on average over a picture: where rounding crosses from one level to the next


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a strict worker has it, and no shortened numbers where fp32 is meant."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def apart(one: Pixels, other: Pixels) -> float:
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_gpu_draws_what_a_cpu_draws(dtype: torch.dtype, seed: int) -> None:
    wanted = studio.spec(seed=seed)
    on_gpu = run_alone(DiffusionRunner.of(demo(dtype)), wanted)
    exact, on_cpu = (
        run_alone(
            DiffusionRunner.of(checkpoint_loader.load(checkpoints.inspect(studio.DEMO), studio.CPU, kind)), wanted
        )
        for kind in (torch.float32, dtype)
    )
    assert apart(exact, on_gpu) < 2 * apart(exact, on_cpu) + LEVEL


@cache
def exact_latents() -> dict[int, Tensor]:
    """Last latents of every image alone, in float64, by their seeds."""
    runner = Recording.of(demo(torch.float64))
    with DoublePrecision():
        for image in company():
            run_alone(runner, image)
    return runner.latents


def company() -> list[ImageSpec]:
    chance = random.Random(7)
    return [anything(chance, seed) for seed in range(IMAGES)]


def lost(latents: Mapping[int, Tensor]) -> float:
    """Return how far images are from the exact ones, each as a share of its largest latent, on average."""
    return mean(
        float((latents[seed] - exact).abs().mean() / exact.abs().max()) for seed, exact in exact_latents().items()
    )


def test_company_changes_nothing_but_the_rounding() -> None:
    together = Recording.of(demo(torch.float64))
    with DoublePrecision():
        in_company(together, company(), random.Random(7))
    for seed, exact in exact_latents().items():
        assert distance(together.latents[seed], exact) < SAME, seed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("strict", [False, True], ids=["continuous", "strict"])
def test_an_image_is_the_same_alone_and_in_any_company(dtype: torch.dtype, strict: bool) -> None:
    """Bit for bit in strict mode; else rounding no worse."""
    alone, together = (Recording.of(demo(dtype), strict_samples=SAMPLES if strict else None) for _ in range(2))
    in_company(together, company(), random.Random(7))
    for image in company():
        run_alone(alone, image)
        ours, theirs = together.latents[image.seed], alone.latents[image.seed]
        assert torch.equal(together.noise[image.seed], alone.noise[image.seed])
        assert torch.equal(ours, theirs) or not strict, image
    assert lost(together.latents) < 2 * lost(alone.latents)


def test_channels_last_draws_the_same() -> None:
    usual = demo(torch.float16)
    other = replace(usual, unet=copy.deepcopy(usual.unet).to(memory_format=torch.channels_last))
    one, two = (run_alone(DiffusionRunner.of(checkpoint), studio.spec()) for checkpoint in (usual, other))
    assert apart(one, two) < rounding(one)


def rounding(pixels: Pixels) -> float:
    """Return how far another picture in the same precision may be from one: each as far from float32's as this one is."""
    return 2 * apart(pixels, run_alone(DiffusionRunner.of(demo(torch.float32)), studio.spec())) + LEVEL


@pytest.mark.timeout(600)
def test_the_compiled_unet_draws_the_same() -> None:
    pytest.importorskip("triton", reason="the compiler for a GPU is not installed")
    compiled = CompiledUNet(demo(torch.float16).unet, rows=(2, 4))
    runner = DiffusionRunner.of(demo(torch.float16), compiled=compiled)
    wanted = studio.spec()
    plain = run_alone(DiffusionRunner.of(demo(torch.float16)), wanted)
    run_alone(runner, wanted)
    assert compiled.settle(timeout_s=500)
    assert compiled._ready
    assert apart(run_alone(runner, wanted), plain) < rounding(plain)


def fragile() -> Any:
    """A VAE in half precision of which the first layers overflow; in full precision they do not."""
    vae = copy.deepcopy(demo(torch.float16).vae)
    for half in (vae.decoder, vae.encoder):
        half.conv_in.weight.data.mul_(2e4)
    return vae


def test_a_picture_whose_vae_overflows_is_decoded_in_full_precision() -> None:
    checkpoint = replace(demo(torch.float16), vae=fragile())
    runner = DiffusionRunner.of(checkpoint)
    image = runner.prepare(runner.draft(studio.spec())).result()
    while not image.is_over:
        runner.denoise([image])
    developing = begin_decode(checkpoint.vae, image.walk.x)
    assert not bool(developing.readback.tensors()[1])
    pixels = developing.pixels()
    assert pixels.std() > 1  # neither black nor gray


def test_a_snapshot_taken_on_a_gpu_goes_on_to_the_same_bits() -> None:
    runner = DiffusionRunner.of(demo(torch.float16), strict_samples=4)
    draft = runner.draft(studio.spec())
    whole, broken_off = runner.prepare(draft).result(), runner.prepare(draft).result()
    for _ in range(5):
        runner.denoise([broken_off])
    resumed = runner.prepare(draft, broken_off.snapshot()).result()
    for image in (whole, resumed):
        while not image.is_over:
            runner.denoise([image])
    assert torch.equal(whole.walk.x, resumed.walk.x)


def kinds() -> list[ImageSpec]:
    chance = random.Random(3)
    return [anything(chance, seed) for seed in range(12)]


def test_half_precision_gives_pictures_of_every_kind() -> None:
    with studio.running(DiffusionRunner.of(demo(torch.float16))) as engine:
        for request in [engine.submit(wanted) for wanted in kinds()]:
            assert request.result(60).std() > 0
