"""What a GPU alone can show of memory and waiting: nothing waits inside a tick, small cards suffice, too much is halved."""

from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path

import pytest
import torch

from tests.bench.studio import full_size
from tests.gpu.card import CONTEXT_BYTES, DEVICE, demo, limited, no_waiting
from tests.support import adapters, studio
from tests.support.ceiling import Ceiling
from tests.support.company import beside_a_long_one, every_kind
from worker.diffusion.checkpoint_loader import LoadedCheckpoint
from worker.engine import profile
from worker.engine.draft import ExtraWeights, ImageDraft
from worker.engine.engine import Engine
from worker.engine.latents import Latents
from worker.engine.limits import BatchLimits
from worker.engine.runner import DiffusionRunner

SMALL_CARD_BYTES = 6 * 2**30
SPARE_BYTES = 3 * 2**28


@pytest.fixture(scope="module")
def large() -> LoadedCheckpoint:
    """SD1.5 of full size with random weights."""
    return full_size(DEVICE, torch.float16)


def test_the_host_waits_for_nothing_inside_a_tick(tmp_path: Path) -> None:
    """Images of every kind, LoRAs, embeddings, VAEs and pictures to start from included."""
    checkpoint = demo(torch.float16)
    library = ExtraWeights.at(adapters.shelves(tmp_path), memory_bytes=2**30)
    # Twice: libraries set up something or other at their first call. A new runner has forgotten its prompts.
    for quiet in (nullcontext, no_waiting):
        beside_a_long_one(DiffusionRunner.of(checkpoint, library), every_kind(), quiet=quiet, meanwhile=lambda: None)


def test_a_batch_that_does_not_fit_is_halved_and_fails_nobody(large: LoadedCheckpoint) -> None:
    """The images are those that fit at once."""
    specs = [studio.spec(seed=seed, width=512, height=512, steps=2) for seed in range(12)]
    limits = Ceiling(24)
    engine: Engine[ImageDraft, Latents] = Engine(DiffusionRunner.of(large), limits=limits)
    with ExitStack() as closing:
        closing.callback(engine.stop)
        requests = [engine.submit(one) for one in specs]
        closing.enter_context(limited(torch.cuda.memory_allocated(DEVICE) + SPARE_BYTES))
        engine.start()
        for request in requests:
            assert request.result(120).shape == (512, 512, 3)
    assert limits.limit((64, 64)) < 24


@pytest.fixture
def small_card(large: LoadedCheckpoint) -> Iterator[LoadedCheckpoint]:
    with limited(SMALL_CARD_BYTES - CONTEXT_BYTES):
        torch.cuda.reset_peak_memory_stats(DEVICE)
        yield large


@pytest.mark.parametrize("side", [512, 768])
def test_six_gigabytes_suffice(small_card: LoadedCheckpoint, side: int) -> None:
    """With the limits that a worker finds by itself, under more images than fit."""
    limits = BatchLimits(None, key="small", ceiling=16, free_bytes=lambda: profile.free_bytes(DEVICE))
    profile.learn(limits, small_card, ceiling=16, budget_s=60)
    assert 2 <= limits.limit((side // 8, side // 8)) <= 16
    engine: Engine[ImageDraft, Latents] = Engine(DiffusionRunner.of(small_card), limits=limits)
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


def test_a_profile_sees_what_calls_take(large: LoadedCheckpoint) -> None:
    two, four = profile.measure(large, (64, 64), (2, 4), deadline=float("inf"))
    assert 0 < two.peak_bytes < four.peak_bytes
