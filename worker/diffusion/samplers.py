"""Samplers: one diffusers scheduler object per image, never shared, because each keeps its own history.

Euler ancestral and DPM++ 2M (arXiv:2211.01095), on uniform or Karras noise levels (arXiv:2206.00364). A sampler draws no noise,
it is handed what was drawn when the image was admitted.
"""

from collections.abc import Mapping
from typing import Any

from diffusers import DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler
from torch import Tensor

from shared.params import Sampler, Schedule


def make(sampler: Sampler, schedule: Schedule, steps: int, config: Mapping[str, Any]) -> Any:
    """Return a fresh scheduler object with its timesteps set.

    `config` is the checkpoint's own scheduler config (noise schedule, prediction type). Timesteps stay on the CPU and the begin
    index is set, or diffusers would synchronise with the device to look it up.
    """
    if sampler is Sampler.EULER_A:
        made = EulerAncestral.from_config(dict(config))
    else:
        made = DPMSolverMultistepScheduler.from_config(dict(config), use_karras_sigmas=schedule is Schedule.KARRAS)
    made.set_timesteps(steps, device="cpu")
    made.set_begin_index(0)
    return made


def noise_draws(made: Any) -> int:
    """Return how many times the sampler takes fresh noise on its way: at every step, the last included, or never."""
    return len(made.timesteps) if isinstance(made, EulerAncestral) else 0


def step(made: Any, prediction: Tensor, timestep: Tensor, x: Tensor, fresh_noise: Tensor | None) -> Tensor:
    """Take one step from `x`, (1, 4, height/8, width/8) float32, by the UNet's prediction for it."""
    stepped: Tensor = made.step(prediction, timestep, x, variance_noise=fresh_noise, return_dict=False)[0]
    return stepped


class EulerAncestral(EulerAncestralDiscreteScheduler):
    """Diffusers' Euler ancestral with its noise drawn beforehand: drawn per step it would stall the device at every step."""

    config: Any
    timesteps: Tensor
    sigmas: Tensor
    _step_index: int

    def step(
        self, prediction: Tensor, _timestep: Tensor, x: Tensor, *, variance_noise: Tensor, return_dict: bool = False
    ) -> tuple[Tensor]:
        """Go down to `sigma_down`, then up to the next noise level with fresh noise; the order of operations is diffusers'."""
        del return_dict
        sigma, sigma_next = self.sigmas[self._step_index : self._step_index + 2]
        sigma_up = (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5
        sigma_down = (sigma_next**2 - sigma_up**2) ** 0.5
        derivative = (x - self._clean(prediction, x, sigma)) / sigma
        self._step_index += 1
        return (x + derivative * (sigma_down - sigma) + variance_noise * sigma_up,)

    def _clean(self, prediction: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the image that the prediction points to."""
        if self.config.prediction_type == "v_prediction":
            return prediction * (-sigma / (sigma**2 + 1) ** 0.5) + x / (sigma**2 + 1)
        return x - sigma * prediction
