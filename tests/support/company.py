"""Images of every kind, and engines that render them in company."""

import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from shared.vocabulary.params import Lora, MaskFill, Upscaler
from shared.vocabulary.samplers import SCHEDULES, Sampler
from tests.support import studio
from tests.support.ceiling import Ceiling
from tests.support.studio import spec
from worker.engine.engine import Engine
from worker.engine.latents import Latents
from worker.engine.request import ImageSpec, Pass, PendingPixels, Request, Start
from worker.engine.runner import DiffusionRunner

SAMPLES = 12
IMAGES = 16
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


def every_kind() -> list[ImageSpec]:
    """Images of every kind, with weights of their own here and there, and enlarged by way of pixels."""
    chance = random.Random(5)
    specs = [anything(chance, seed) for seed in range(IMAGES)]
    enlarged = replace(specs[0].passes[0], width=96, height=96, last=1, upscaler=Upscaler.LANCZOS)
    specs[0] = replace(specs[0], passes=(replace(specs[0].passes[0], width=64, height=64), enlarged))
    lora = (Lora(name="one", weight=0.7, text_encoder_weight=0.7),)
    specs[1] = replace(specs[1], vae="own", passes=tuple(replace(one, loras=lora) for one in specs[1].passes))
    specs[2] = replace(specs[2], passes=tuple(replace(one, prompt="a word") for one in specs[2].passes))
    return specs


def beside_a_long_one(
    runner: DiffusionRunner,
    specs: Iterable[ImageSpec],
    *,
    quiet: Callable[[], AbstractContextManager[None]],
    meanwhile: Callable[[], None],
) -> int:
    """Render one image after another while there is always one to denoise, tick by tick; returns how many previews were seen."""
    engine = Engine(runner, limits=Ceiling(SAMPLES))
    engine.submit(
        studio.spec(width=64, height=64, steps=900, sampler=Sampler.DDIM, schedule=SCHEDULES[Sampler.DDIM][0])
    )
    engine.tick()
    waiting, requests, shown = list(specs), list[Request](), 0
    while waiting or not all(request.is_done for request in requests):
        if waiting:
            requests.append(engine.submit(waiting.pop(0)))
        with quiet():
            engine.tick()
            shown += sum(request.take_preview() is not None for request in requests)
        meanwhile()
        for request in requests:
            assert not request.is_done or request.result(0).std() > 0
    return shown
