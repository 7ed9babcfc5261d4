"""Real pictures of the demo checkpoint: right to look at, equal to diffusers' own, and the same alone as in any batch."""

import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, StableDiffusionPipeline

from deploy.standalone.training.shapes import PALETTE
from shared import catalog
from shared.errors import OutOfMemory
from shared.params import Sampler, Schedule
from worker.diffusion import checkpoint as checkpoints
from worker.diffusion.checkpoint import Checkpoint
from worker.engine.engine import Engine, run_alone
from worker.engine.request import ImageSpec, Pixels
from worker.engine.runner import DiffusionRunner, Latents

DEMO = Path(__file__).parents[2] / "deploy/standalone/checkpoints/farm-demo.safetensors"
SPEC = ImageSpec("a red circle on a blue background", "", 12, 7.0, 128, 128, 42, Sampler.DPMPP_2M, Schedule.KARRAS)
EULER_A: dict[str, Any] = {"sampler": Sampler.EULER_A, "schedule": Schedule.UNIFORM}


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return checkpoints.load(catalog.inspect(DEMO), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def engine(checkpoint: Checkpoint) -> Iterator[Engine[Latents]]:
    engine = Engine(DiffusionRunner(checkpoint), max_samples=16)
    engine.start()
    yield engine
    engine.stop()


def color_at(pixels: Pixels, x: float, y: float) -> str:
    """The nearest named colour of a small patch around a point given in shares of the side."""
    side = pixels.shape[0]
    patch = pixels[int(y * side) - 4 : int(y * side) + 4, int(x * side) - 4 : int(x * side) + 4].reshape(-1, 3)
    mean = patch.mean(axis=0)
    return min(PALETTE, key=lambda name: float(np.abs(mean - np.array(PALETTE[name])).sum()))


def test_pictures_follow_their_prompts(engine: Engine[Latents]) -> None:
    """The shape's colour in the middle, the background's in the corners, for several seeds, colours, shapes and both samplers."""
    wanted: list[tuple[str, str, str, int, dict[str, Any]]] = [
        ("red", "circle", "blue", seed, {}) for seed in (1, 2, 42)
    ] + [
        ("yellow", "square", "red", 5, {}),
        ("black", "circle", "white", 6, {}),
        ("white", "heart", "blue", 7, {}),
        ("red", "circle", "blue", 8, EULER_A),
        ("green", "circle", "yellow", 9, EULER_A),
    ]
    large = replace(SPEC, width=256, height=256, steps=20)
    requests = [
        engine.submit(replace(large, prompt=f"a {color} {shape} on a {ground} background", seed=seed, **how))
        for color, shape, ground, seed, how in wanted
    ]
    for (color, shape, ground, seed, _), request in zip(wanted, requests, strict=True):
        pixels = request.result(120)
        seen = color_at(pixels, 0.5, 0.5), {color_at(pixels, x, y) for x in (0.05, 0.95) for y in (0.05, 0.95)}
        assert seen == (color, {ground}), f"{color} {shape} on {ground}, seed {seed}"


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        replace(SPEC, **EULER_A),
        replace(SPEC, negative_prompt="blurry, text"),
        replace(SPEC, schedule=Schedule.UNIFORM, width=192, steps=5),
        replace(SPEC, guidance_scale=1.0, steps=5),
    ],
)
def test_alone_equals_diffusers_own_pipeline(checkpoint: Checkpoint, spec: ImageSpec) -> None:
    config = checkpoint.scheduler_config
    scheduler = (
        EulerAncestralDiscreteScheduler.from_config(config)
        if spec.sampler is Sampler.EULER_A
        else DPMSolverMultistepScheduler.from_config(config, use_karras_sigmas=spec.schedule is Schedule.KARRAS)
    )
    pipeline: Any = StableDiffusionPipeline(
        vae=checkpoint.vae,
        text_encoder=checkpoint.text_encoder,
        tokenizer=checkpoint.tokenizer,
        unet=checkpoint.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        spec.prompt,
        negative_prompt=spec.negative_prompt,
        height=spec.height,
        width=spec.width,
        num_inference_steps=spec.steps,
        guidance_scale=spec.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(spec.seed),
        output_type="np",
    ).images[0]
    ours = run_alone(DiffusionRunner(checkpoint), spec)
    assert np.abs(theirs * 255 - ours).max() <= 1.0


def test_in_any_batch_as_alone(checkpoint: Checkpoint, engine: Engine[Latents]) -> None:
    """Mixed steps, samplers, guidance, seeds and prompt lengths at once; one grey level is the tolerance of fp32 on a CPU."""
    specs = [
        SPEC,
        replace(SPEC, seed=7, steps=5, **EULER_A),
        replace(SPEC, guidance_scale=1.0),
        replace(SPEC, guidance_scale=4.5, seed=3, steps=9),
        replace(SPEC, prompt=SPEC.prompt + ", sharp" * 60),
        replace(SPEC, width=192),
    ]
    requests = [engine.submit(spec) for spec in specs]
    for spec, request in zip(specs, requests, strict=True):
        alone = run_alone(DiffusionRunner(checkpoint), spec)
        assert np.abs(request.result(120).astype(int) - alone.astype(int)).max() <= 1


class Hungry(torch.nn.Module):
    """A UNet that runs out of memory in the middle, holding what it had computed so far."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[weakref.ref[torch.Tensor]] = []

    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        activations = x * 2
        self.held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("no more")


def test_running_out_of_memory_lets_go_of_the_failed_call(checkpoint: Checkpoint) -> None:
    """A future keeps its error for as long as the job wants it; the error must not keep the call's tensors."""
    hungry = Hungry()
    runner = DiffusionRunner(replace(checkpoint, unet=hungry))
    image = runner.prepare(replace(SPEC, steps=2, width=64, height=64))
    with pytest.raises(OutOfMemory) as kept:
        runner.denoise([image])
    assert kept.value.retryable
    assert [held() for held in hungry.held] == [None]
    assert image.steps_done == 0


def test_every_seed_is_another_picture(checkpoint: Checkpoint) -> None:
    runner = DiffusionRunner(checkpoint)
    first, second = (run_alone(runner, replace(SPEC, steps=2, width=64, height=64, seed=seed)) for seed in (1, 2))
    assert (first != second).any()


def test_words_past_the_75th_token_count(checkpoint: Checkpoint) -> None:
    runner = DiffusionRunner(checkpoint)
    filler = "sharp " * 80
    plain, more = (runner.prepare(replace(SPEC, prompt=filler + word)).context for word in ("", "red circle"))
    assert plain.shape == more.shape == (2, 154, 48)
    assert not torch.equal(plain, more)
