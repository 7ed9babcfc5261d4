"""What a GPU alone can show of memory and waiting: nothing waits inside a tick, small cards suffice, too much is halved."""

import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests import adapters, studio
from tests.bench.studio import full_size
from tests.ceiling import Ceiling
from tests.gpu.card import CONTEXT_BYTES, DEVICE, demo, limited, no_waiting
from tests.integration.test_invariance import anything
from worker.diffusion.checkpoint import Checkpoint
from worker.diffusion.lora import Mix
from worker.diffusion.lora_file import load
from worker.diffusion.vae import begin_decode
from worker.engine import profile
from worker.engine.arrival import arrived
from worker.engine.draft import Draft
from worker.engine.engine import Engine
from worker.engine.latents import Latents
from worker.engine.limits import BatchLimits
from worker.engine.runner import DiffusionRunner

SMALL_CARD_BYTES = 6 * 2**30
SPARE_BYTES = 3 * 2**28


@pytest.fixture(scope="module")
def large() -> Checkpoint:
    """SD1.5 of full size with random weights."""
    return full_size(DEVICE, torch.float16)


def test_the_host_waits_for_nothing_inside_a_tick(tmp_path: Path) -> None:
    """Prompts, noise, prompt editing, LoRAs and texts of different lengths included; a picture to start from may wait."""
    checkpoint = demo(torch.float16)
    chance = random.Random(5)
    specs = [
        one for one in (anything(chance, seed) for seed in range(30)) if one.start is None and len(one.passes) == 1
    ]
    specs = [replace(one, passes=(replace(one.passes[0], width=64, height=64),)) for one in specs]
    lora = load(
        adapters.written(tmp_path / "a.safetensors", adapters.as_kohya(adapters.random_lora(1), alpha=4)), checkpoint
    )
    runner = DiffusionRunner.of(checkpoint)
    drafts = [runner.draft(one) for one in specs]
    mix = Mix.of([(lora, 0.5)])
    drafts[0] = replace(drafts[0], legs=(replace(drafts[0].legs[0], unet_mix=mix, text_mix=mix),))
    # Once, for what libraries set up at their first call.
    advance(runner, [arrived(runner.begin(draft)) for draft in drafts])
    forgetful = DiffusionRunner.of(checkpoint)  # of the prompts that it has encoded
    with no_waiting():
        images = [arrived(forgetful.begin(draft)) for draft in drafts]
        advance(forgetful, images)
        shown = [forgetful.preview(images[0]), begin_decode(checkpoint.vae, images[0].walk.x)]
    for developing in shown:
        assert developing.pixels().std() > 0


def advance(runner: DiffusionRunner, images: list[Latents]) -> None:
    while waiting := [image for image in images if not image.is_over]:
        runner.denoise(waiting)


def test_a_batch_that_does_not_fit_is_halved_and_fails_nobody(large: Checkpoint) -> None:
    """The images are those that fit at once."""
    specs = [studio.spec(seed=seed, width=512, height=512, steps=2) for seed in range(12)]
    limits = Ceiling(24)
    engine: Engine[Draft, Latents] = Engine(DiffusionRunner.of(large), limits=limits)
    with ExitStack() as closing:
        closing.callback(engine.stop)
        requests = [engine.submit(one) for one in specs]
        closing.enter_context(limited(torch.cuda.memory_allocated(DEVICE) + SPARE_BYTES))
        engine.start()
        for request in requests:
            assert request.result(120).shape == (512, 512, 3)
    assert limits.limit((64, 64)) < 24


@pytest.fixture
def small_card(large: Checkpoint) -> Iterator[Checkpoint]:
    with limited(SMALL_CARD_BYTES - CONTEXT_BYTES):
        torch.cuda.reset_peak_memory_stats(DEVICE)
        yield large


@pytest.mark.parametrize("side", [512, 768])
def test_six_gigabytes_suffice(small_card: Checkpoint, side: int) -> None:
    """With the limits that a worker finds by itself, under more images than fit."""
    limits = BatchLimits(None, key="small", ceiling=16, free_bytes=lambda: profile.free_bytes(DEVICE))
    profile.learn(limits, small_card, ceiling=16, budget_s=60)
    assert 2 <= limits.limit((side // 8, side // 8)) <= 16
    engine: Engine[Draft, Latents] = Engine(DiffusionRunner.of(small_card), limits=limits)
    engine.start()
    try:
        requests = [engine.submit(studio.spec(seed=seed, width=side, height=side, steps=2)) for seed in range(8)]
        for request in requests:
            assert request.result(120).shape == (side, side, 3)
    finally:
        engine.stop()
    assert torch.cuda.max_memory_reserved(DEVICE) <= SMALL_CARD_BYTES - CONTEXT_BYTES


def test_what_a_worker_may_have_is_what_it_counts_as_free() -> None:
    with limited(2**30):
        before = profile.free_bytes(DEVICE)
        kept = torch.empty(2**28, dtype=torch.uint8, device=DEVICE)
        assert before <= 2**30
        assert before - profile.free_bytes(DEVICE) == pytest.approx(kept.nbytes, rel=0.05)


def test_a_profile_sees_what_calls_take(large: Checkpoint) -> None:
    two, four = profile.measure(large, (64, 64), (2, 4), deadline=float("inf"))
    assert 0 < two.peak_bytes < four.peak_bytes
