"""An image is the same alone and in any company: images of every kind, joining and leaving one engine at random.

`make invariance` renders 400 of them; as many kinds come up among few.

The noise is equal bit for bit. In continuous mode the latents differ by rounding in calls of different shapes, which the samplers
carry on from step to step, so they are computed in float64 there; in strict mode they are equal bit for bit.
"""

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from shared.vocabulary.params import MaskFill, Upscaler
from shared.vocabulary.samplers import SCHEDULES, Sampler
from tests.support.ceiling import Ceiling
from tests.support.studio import demo, doubled, spec
from tests.support.walking import SAME, DoublePrecision, distance
from worker.engine.engine import Engine, run_alone
from worker.engine.latents import Latents
from worker.engine.request import ImageSpec, Pass, PendingPixels, Request, Start
from worker.engine.runner import DiffusionRunner

IMAGES = int(os.environ.get("INVARIANCE_IMAGES", "80"))
STRICT_IMAGES = IMAGES // 3
SAMPLES = 12
PROMPTS = (
    "a red circle on a blue background",
    "a (green:1.3) [square] on a yellow background",
    "a white heart " + "on a very black background " * 30,
    "a [red|blue] star on a [white:black:0.5] background",
    "a red circle AND a blue background :0.6",
    "",
)


class Recording(DiffusionRunner):
    """Keeps each image's first noise and last latents."""

    def __init__(self, *parts: object, **how: object) -> None:
        super().__init__(*parts, **how)  # type: ignore[arg-type]
        self.noise: dict[int, Tensor] = {}
        self.latents: dict[int, Tensor] = {}

    def decode(self, image: Latents) -> PendingPixels:
        self.noise[image.draft.seed] = image.draft.passes[0].noise
        self.latents[image.draft.seed] = image.walk.x
        return super().decode(image)


def anything(chance: random.Random, seed: int) -> ImageSpec:
    """A small image of any kind. The seed tells images apart."""
    side = chance.choice([64, 64, 64, 96])
    sampler = chance.choice(list(Sampler))
    how: dict[str, Any] = {
        "prompt": chance.choice(PROMPTS),
        "negative_prompt": chance.choice(["", "blurry", "text " * 90]),
        "guidance_scale": chance.choice([1.0, 2.5, 7.0]),
        "steps": chance.randint(1, 5),
        "sampler": sampler,
        "schedule": chance.choice(SCHEDULES[sampler]),
        "width": side,
        "height": chance.choice([64, side]),
        "variation_strength": chance.choice([0.0, 0.0, 0.4]),
        "variation_seed": 5,
        "clip_skip": chance.choice([1, 1, 2]),
    }
    if chance.random() < 0.3:
        return spec(
            seed=seed, start=start(chance, how["width"], how["height"]), last=chance.randint(1, how["steps"]), **how
        )
    return spec(*([second_pass(how["prompt"])] if chance.random() < 0.2 else []), seed=seed, **how)


def start(chance: random.Random, width: int, height: int) -> Start:
    pixels = np.random.default_rng(chance.randint(0, 9)).integers(0, 255, (height, width, 3), dtype=np.uint8)
    if chance.random() < 0.5:
        return Start(pixels)
    mask = np.zeros((height, width), dtype=np.float32)
    mask[: height // 2] = 1
    return Start(pixels, mask, chance.choice(list(MaskFill)))


def second_pass(prompt: str) -> Pass:
    return Pass(
        prompt=prompt,
        negative_prompt="",
        width=96,
        height=96,
        steps=6,
        last=3,
        guidance_scale=5.0,
        sampler=Sampler.EULER_A,
        schedule=SCHEDULES[Sampler.EULER_A][0],
        upscaler=Upscaler.LATENT,
    )


def in_company(runner: Recording, specs: Sequence[ImageSpec], chance: random.Random) -> float:
    """Render everything with random arrivals; returns how many images shared a call, on average."""
    engine = Engine(runner, limits=Ceiling(SAMPLES))
    waiting = list(specs)
    requests: list[Request] = []
    calls, shared = 0, 0
    while waiting or any(not request.is_done for request in requests):
        arrivals = min(len(waiting), chance.choice([0, 0, 0, 1, 3]))
        requests += [engine.submit(waiting.pop()) for _ in range(arrivals)]
        before = [request.steps_done for request in requests]
        engine.tick()
        made = sum(after.steps_done - done for after, done in zip(requests, before, strict=True))
        calls, shared = calls + bool(made), shared + made
    for request in requests:
        request.result(0)
    return shared / calls


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
