"""An image is the same alone and in any company: images of every kind, joining and leaving one engine at random.

`make invariance` renders 400 of them; as many kinds come up among few.

The noise is equal bit for bit. In continuous mode the latents differ by rounding in calls of different shapes, which the samplers
carry on from step to step, so they are computed in float64 there; in strict mode they are equal bit for bit.
"""

import os
import random
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from tests.support.company import SAMPLES, Recording, anything, in_company
from tests.support.studio import demo, doubled
from tests.support.walking import SAME, DoublePrecision, distance
from worker.engine.engine import run_alone

IMAGES = int(os.environ.get("INVARIANCE_IMAGES", "80"))
STRICT_IMAGES = IMAGES // 3


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As a strict worker on a CPU runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("strict", [False, True], ids=["continuous", "strict"])
def test_an_image_is_the_same_alone_and_in_any_company(strict: bool) -> None:
    chance = random.Random(7)
    specs = [anything(chance, seed) for seed in range(STRICT_IMAGES if strict else IMAGES)]
    checkpoint = demo() if strict else doubled(demo())
    alone, company = (Recording.of(checkpoint, strict_samples=SAMPLES if strict else None) for _ in range(2))
    with nullcontext() if strict else DoublePrecision():
        together = in_company(company, specs, chance)
        for image in specs:
            run_alone(alone, image)
    assert together > 1.0 if strict else together > 2.0
    for image in specs:
        ours, theirs = company.latents[image.seed], alone.latents[image.seed]
        assert torch.equal(company.noise[image.seed], alone.noise[image.seed])
        assert ours.dtype is checkpoint.dtype
        assert torch.equal(ours, theirs) if strict else distance(ours, theirs) < SAME, image
