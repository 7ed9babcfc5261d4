"""Samplers walk exactly as diffusers' own loop does, each on its own, with the noise that the seed means."""

from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, PNDMScheduler
from torch import Tensor

from shared.params import SCHEDULES, Sampler, Schedule
from worker.diffusion import noise, samplers

SIDE = 64
ALL = [(sampler, schedule) for sampler, schedules in SCHEDULES.items() for schedule in schedules]


def config(**changes: Any) -> dict[str, Any]:
    """SD1.5's own noise schedule, as a checkpoint brings it."""
    pndm: Any = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
        **changes,
    )
    return dict(pndm.config)


def predicted(x: Tensor, timestep: Tensor) -> Tensor:
    """A UNet's stand-in: smooth, bounded, and another answer for every latent and timestep."""
    return torch.tanh(x * 0.7 + torch.sin(timestep.float() / 100))


def theirs(sampler: Sampler, schedule: Schedule, steps: int, seed: int, settings: dict[str, Any]) -> Tensor:
    """The denoising loop of diffusers' pipeline, which draws noise as it goes."""
    scheduler: Any = (
        EulerAncestralDiscreteScheduler.from_config(settings)
        if sampler is Sampler.EULER_A
        else DPMSolverMultistepScheduler.from_config(settings, use_karras_sigmas=schedule is Schedule.KARRAS)
    )
    generator = torch.Generator("cpu").manual_seed(seed)
    scheduler.set_timesteps(steps)
    x = torch.randn((1, 4, SIDE // 8, SIDE // 8), generator=generator) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        prediction = predicted(scheduler.scale_model_input(x, timestep), timestep)
        x = scheduler.step(prediction, timestep, x, generator=generator, return_dict=False)[0]
    return x


class Walk:
    """Our side of the comparison, one step at a time."""

    def __init__(self, sampler: Sampler, schedule: Schedule, steps: int, seed: int, settings: dict[str, Any]) -> None:
        self.made = samplers.make(sampler, schedule, steps, settings)
        first, self.fresh = noise.draw(seed, width=SIDE, height=SIDE, fresh=samplers.noise_draws(self.made))
        self.x = first * self.made.init_noise_sigma
        self.steps_done = 0

    @property
    def is_done(self) -> bool:
        return self.steps_done == len(self.made.timesteps)

    def step(self) -> None:
        timestep = self.made.timesteps[self.steps_done]
        prediction = predicted(self.made.scale_model_input(self.x, timestep), timestep)
        fresh = self.fresh[self.steps_done] if len(self.fresh) else None
        self.x = samplers.step(self.made, prediction, timestep, self.x, fresh)
        self.steps_done += 1

    def end(self) -> Tensor:
        while not self.is_done:
            self.step()
        return self.x


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 150])
@pytest.mark.parametrize(("sampler", "schedule"), ALL)
def test_a_walk_equals_diffusers_own_loop(sampler: Sampler, schedule: Schedule, steps: int) -> None:
    walk = Walk(sampler, schedule, steps, 42, config())
    assert torch.equal(walk.end(), theirs(sampler, schedule, steps, 42, config()))
    assert walk.steps_done == steps
    assert walk.x.dtype == torch.float32


@pytest.mark.parametrize(("sampler", "schedule"), ALL)
def test_a_checkpoint_that_predicts_velocity_is_walked_so(sampler: Sampler, schedule: Schedule) -> None:
    velocity = config(prediction_type="v_prediction")
    walked = Walk(sampler, schedule, 9, 3, velocity).end()
    assert torch.equal(walked, theirs(sampler, schedule, 9, 3, velocity))
    assert not torch.equal(walked, Walk(sampler, schedule, 9, 3, config()).end())


def test_interleaved_walks_do_not_disturb_each_other() -> None:
    plans = [(sampler, schedule, steps, steps) for sampler, schedule in ALL for steps in (3, 11)]
    walks = [Walk(*plan, config()) for plan in plans]
    while not all(walk.is_done for walk in walks):
        for walk in walks:
            if not walk.is_done:
                walk.step()
    for walk, plan in zip(walks, plans, strict=True):
        assert torch.equal(walk.x, theirs(*plan, config()))


def test_only_the_seed_and_the_size_decide_the_first_noise() -> None:
    few, _ = noise.draw(7, width=64, height=128, fresh=0)
    many, fresh = noise.draw(7, width=64, height=128, fresh=3)
    assert torch.equal(few, many)
    assert few.shape == (1, 4, 16, 8)
    assert fresh.shape == (3, 1, 4, 16, 8)
    assert len({float(draw.sum()) for draw in [many, *fresh]}) == 4
    assert not torch.equal(few, noise.draw(8, width=64, height=128, fresh=0)[0])
