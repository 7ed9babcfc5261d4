"""Diffusers' own denoising loop, to hold a walk against: the same scheduler object, model and seed, but no plan."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from shared.vocabulary.samplers import SCHEDULES, TWO_CALLS_A_STEP, Sampler, Schedule
from worker.diffusion import samplers
from worker.diffusion.noise import Noise
from worker.diffusion.plan import Plan, Walk

PAIRS = [(sampler, schedule) for sampler, schedules in SCHEDULES.items() for schedule in schedules]
SIDE = 64
# Of the largest latent, between two ways to compute one walk in float64. Even a coefficient rounded to float32 (2^-24) is seen,
# and float64's own rounding (2^-53) may grow four-million-fold on the way: what a processor does in which order is not.
SAME = 2.0**-30

Model = Callable[[Tensor, float], Tensor]


def sd15(**changes: Any) -> dict[str, Any]:
    """SD1.5's noise schedule, as a checkpoint brings it."""
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    return {**settings, "prediction_type": "epsilon", "steps_offset": 1, **changes}


class DoublePrecision(TorchFunctionMode):
    """Runs in float64 what is written for float32, with the noise that float32 would have."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Draw noise in float32 and widen it; let no latents, which alone have four dimensions, be narrowed."""
        options = dict(kwargs or {})
        if func is torch.randn:
            return func(*args, **{**options, "dtype": torch.float32}).double()
        if func is torch.as_tensor:  # the levels between which the library's Brownian path is scaled
            made = func(*args, **options)
            return made.double() if made.is_floating_point() else made
        if func is torch.zeros:
            options.setdefault("dtype", torch.float64)
        if func in (torch.Tensor.to, torch.Tensor.float) and args[0].dtype is torch.float64 and args[0].ndim == 4:
            if func is torch.Tensor.float:
                return args[0]
            args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
            options = {name: torch.float64 if value is torch.float32 else value for name, value in options.items()}
        return func(*args, **options)


def distance(walked: Tensor, expected: Tensor) -> float:
    """Return how far apart latents are, as a share of the largest."""
    return float((walked - expected).abs().max() / expected.abs().max())


def toy(x: Tensor, timestep: float) -> Tensor:
    """A UNet's stand-in: bounded, far from linear, and another answer for every latent and timestep."""
    return torch.tanh(x * 1.3 + timestep / 1000)


def ours(plan: Plan, model: Model, seed: int, clean: Tensor | None = None) -> Tensor:
    """Walk to the end, from noise or from a picture with noise over it."""
    noise = Noise(seed, width=SIDE, height=SIDE)
    x = noise.first() * plan.start[1]
    if clean is not None:
        x = x + clean * plan.start[0]
    walk = Walk(plan, x, noise.fresh(plan))
    while not walk.is_over:
        walk.advance(model(walk.model_input(), walk.call.timestep))
    return walk.x


def theirs(
    sampler: Sampler,
    schedule: Schedule,
    steps: int,
    config: dict[str, Any],
    model: Model,
    seed: int,
    clean: Tensor | None = None,
    last: int | None = None,
) -> Tensor:
    """The loop of diffusers' pipelines, which draws noise as it goes."""
    scheduler = samplers.make(sampler, schedule, steps, config)
    if sampler is Sampler.DPMPP_SDE:
        scheduler.noise_sampler_seed = seed
    generator = torch.Generator("cpu").manual_seed(seed)
    x = torch.randn((1, 4, SIDE // 8, SIDE // 8), generator=generator)
    begin = (steps - (last or steps)) * (2 if sampler in TWO_CALLS_A_STEP else 1)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    timesteps = scheduler.timesteps[begin:]
    if sampler is Sampler.PLMS and begin:  # its second timestep comes twice, which the pipeline forgets
        timesteps = torch.cat([scheduler.timesteps[begin + 1 :][:2], scheduler.timesteps[begin + 2 :]])
    x = x * scheduler.init_noise_sigma if clean is None else scheduler.add_noise(clean, x, timesteps[:1])
    draws = {"generator": generator} if "generator" in signature(scheduler.step).parameters else {}
    for done, timestep in enumerate(timesteps):
        # In the middle of a schedule the library's LMS takes weights for a history that it does not have.
        order = {"order": min(4, done + 1)} if sampler is Sampler.LMS else {}
        prediction = model(scheduler.scale_model_input(x, timestep), float(timestep))
        x = scheduler.step(prediction, timestep, x, **draws, **order, return_dict=False)[0]
    return x
