"""Samplers: one diffusers scheduler object per image, never shared, because each keeps its own history.

Euler ancestral and DPM++ 2M (arXiv:2211.01095), on uniform or Karras noise levels (arXiv:2206.00364).
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler
from torch import Tensor

from shared.params import Sampler, Schedule


def make(sampler: Sampler, schedule: Schedule, steps: int, config: Mapping[str, Any]) -> Any:
    """Return a fresh scheduler object with its timesteps set.

    `config` is the checkpoint's own scheduler config (noise schedule, prediction type). Timesteps stay on the CPU and the begin
    index is set, or diffusers would synchronise with the device to look it up.
    """
    if sampler is Sampler.EULER_A:
        made = EulerAncestralDiscreteScheduler.from_config(dict(config))
    else:
        made = DPMSolverMultistepScheduler.from_config(dict(config), use_karras_sigmas=schedule is Schedule.KARRAS)
    made.set_timesteps(steps, device="cpu")
    if hasattr(made, "set_begin_index"):
        made.set_begin_index(0)
    return made


def step(made: Any, prediction: Tensor, timestep: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
    """Take one step; samplers that add noise draw it from the image's own generator."""
    takes_generator = "generator" in inspect.signature(made.step).parameters
    noise = {"generator": generator} if takes_generator else {}
    stepped: Tensor = made.step(prediction, timestep, x, return_dict=False, **noise)[0]
    return stepped
