"""A walk ends where `StableDiffusionPipeline` ends, for every sampler on every schedule.

The pipeline runs alone, with its own loop, generator and guidance; both are given the same text embeddings. Every sampler walks
with the demo checkpoint's UNet on its default schedule. The other schedules are other tables of levels, which a UNet of few
layers tells apart as well in a third of the time.
"""

import copy
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from shared.vocabulary.samplers import SCHEDULES, Sampler, Schedule
from tests.support.studio import demo, small
from tests.support.walking import PAIRS, SAME, SIDE, DoublePrecision, distance, ours
from worker.diffusion import plan as plans
from worker.diffusion import samplers

SEED, STEPS, GUIDANCE = 42, 5, 5.0
TCD_ETA = 0.3  # the scheduler's own default; the pipeline says 0 to whoever listens


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Latents this small lose more by being shared out than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def trained() -> Any:
    return copy.deepcopy(demo().unet).double()


@cache
def slight() -> Any:
    return copy.deepcopy(small().unet).double()


@cache
def embeddings() -> tuple[Tensor, Tensor]:
    """A prompt's and the empty prompt's, (1, 77, width)."""
    encoded = pipeline().encode_prompt("a red circle on a blue background", torch.device("cpu"), 1, True, "")
    prompt, negative = encoded
    return prompt.detach(), negative.detach()


@cache
def pipeline() -> Any:
    checkpoint = demo()
    bare: Any = StableDiffusionPipeline(
        vae=checkpoint.vae,
        text_encoder=copy.deepcopy(checkpoint.text_encoder).double(),
        tokenizer=checkpoint.tokenizer,
        unet=trained(),
        scheduler=samplers.make(Sampler.EULER, Schedule.UNIFORM, STEPS, checkpoint.scheduler_config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    bare.set_progress_bar_config(disable=True)
    return bare


def guided(unet: Any, x: Tensor, timestep: float) -> Tensor:
    """One UNet call for both prompts, as the engine makes it: a float timestep for every row."""
    prompt, negative = embeddings()
    predictions = unet(
        x.expand(2, -1, -1, -1),
        torch.full((2,), timestep),
        encoder_hidden_states=torch.cat([negative, prompt]),
        return_dict=False,
    )[0]
    away, towards = predictions.split(1)
    return away + GUIDANCE * (towards - away)


def theirs(bare: Any, sampler: Sampler, schedule: Schedule) -> Tensor:
    prompt, negative = embeddings()
    bare.scheduler = samplers.make(sampler, schedule, STEPS, demo().scheduler_config)
    if sampler is Sampler.DPMPP_SDE:
        bare.scheduler.noise_sampler_seed = SEED  # this one does not listen to the generator
    latents: Tensor = bare(
        prompt_embeds=prompt,
        negative_prompt_embeds=negative,
        height=SIDE,
        width=SIDE,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        eta=TCD_ETA if sampler is Sampler.TCD else 0.0,
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="latent",
    ).images
    return latents


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore:Should have:UserWarning")  # the library oversteps its own Brownian path by rounding
@pytest.mark.parametrize(("sampler", "schedule"), PAIRS)
def test_latents_are_those_of_the_pipeline(sampler: Sampler, schedule: Schedule) -> None:
    plan = plans.make(sampler, schedule, STEPS, demo().scheduler_config)
    bare = pipeline()
    bare.unet = trained() if schedule is SCHEDULES[sampler][0] else slight()
    with DoublePrecision():
        apart = distance(ours(plan, partial(guided, bare.unet), SEED), theirs(bare, sampler, schedule))
    assert apart < SAME
