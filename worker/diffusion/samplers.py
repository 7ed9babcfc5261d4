"""Factory of diffusers' scheduler objects, one for every sampler and each of its schedules.

`make` chooses the class and its options. Where a class does not know a schedule, `_levels` computes the noise levels (sigmas) and
`make` hands them over in the one place where every class asks for levels: its function for Karras' schedule.

Euler, Euler ancestral, Heun and Karras' schedule: arXiv:2206.00364. LMS, DPM2: k-diffusion. DPM++: arXiv:2211.01095. DDIM:
arXiv:2010.02502. DDPM: arXiv:2006.11239. PLMS: arXiv:2202.09778. UniPC: arXiv:2302.04867. DEIS: arXiv:2204.13902. LCM:
arXiv:2310.04378. TCD: arXiv:2402.19159. Beta schedule: arXiv:2407.12173. Align Your Steps: arXiv:2404.14507.
Zero terminal SNR: arXiv:2305.08891.
"""

import inspect
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from numpy.typing import NDArray

from shared.vocabulary.samplers import Sampler, Schedule, unet_calls

Sigmas = NDArray[np.float64]


class _Trailing:
    """Counts trailing timesteps in whole numbers: the library's floats make one too many at 61 steps and at others."""

    timesteps: torch.Tensor
    config: Any

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Set as many timesteps as there are steps."""
        super().set_timesteps(num_inference_steps, device)  # type: ignore[misc]
        if self.config.timestep_spacing == "trailing":
            trained = self.config.num_train_timesteps
            left = range(num_inference_steps, 0, -1)
            self.timesteps = torch.tensor([round(Fraction(trained * steps, num_inference_steps)) - 1 for steps in left])


class Ddim(_Trailing, diffusers.DDIMScheduler):
    """Steps to its next timestep: the library's class goes down by 1000 // steps, and lags where that leaves a rest."""

    num_inference_steps: Any

    def step(self, model_output: Any, timestep: Any, sample: Any, **options: Any) -> Any:
        """Step as the library does, by the number of timesteps to the next one."""
        below = self.timesteps[self.timesteps < timestep]
        down = int(timestep) - (int(below.max()) if len(below) else -1)
        self.num_inference_steps = Fraction(self.config.num_train_timesteps, down)  # what the library divides by
        return super().step(model_output, timestep, sample, **options)  # type: ignore[misc]


class Ddpm(_Trailing, diffusers.DDPMScheduler):
    """The library's, with its timesteps counted in whole numbers."""


class EulerAncestral(diffusers.EulerAncestralDiscreteScheduler):
    """Euler ancestral on the levels of Euler, for every schedule: the library's class knows only the uniform one."""

    timesteps: torch.Tensor
    sigmas: torch.Tensor
    plain: Any

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Copy timesteps and levels from the Euler scheduler `plain`."""
        super().set_timesteps(num_inference_steps, device)  # type: ignore[misc]
        self.plain.set_timesteps(num_inference_steps, device)
        self.timesteps, self.sigmas = self.plain.timesteps, self.plain.sigmas


class Deis(diffusers.DEISMultistepScheduler):
    """DEIS that ends at the lowest level on every schedule: the library's class repeats its last level, a call for nothing."""

    alphas_cumprod: torch.Tensor
    sigmas: torch.Tensor

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Replace the final level by the lowest one of the training."""
        super().set_timesteps(num_inference_steps, device)  # type: ignore[misc]
        self.sigmas[-1] = ((1 - self.alphas_cumprod[0]) / self.alphas_cumprod[0]) ** 0.5


class _QuickConstructor:
    """Skips the schedule of a thousand steps that the constructors of these classes compute, which takes 0.3 s."""

    sigmas: torch.Tensor

    def set_timesteps(
        self, num_inference_steps: int, device: Any = None, num_train_timesteps: int | None = None
    ) -> None:
        """Set the timesteps; do nothing for the constructor, which alone passes `num_train_timesteps`."""
        if num_train_timesteps is None:
            super().set_timesteps(num_inference_steps, device)  # type: ignore[misc]
        else:
            self.sigmas = torch.empty(0)


class Dpm2(_QuickConstructor, diffusers.KDPM2DiscreteScheduler):
    """The library's, constructed quickly."""


class Dpm2Ancestral(_QuickConstructor, diffusers.KDPM2AncestralDiscreteScheduler):
    """The library's, constructed quickly."""


class DpmSde(_QuickConstructor, diffusers.DPMSolverSDEScheduler):
    """The library's, constructed quickly."""


class Heun(_QuickConstructor, diffusers.HeunDiscreteScheduler):
    """The library's, constructed quickly."""


class Lms(diffusers.LMSDiscreteScheduler):
    """The library's, constructed quickly."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Set the timesteps; do nothing for the constructor, which alone names no device."""
        if device is not None:
            super().set_timesteps(num_inference_steps, device)  # type: ignore[misc]


_SDE = {"algorithm_type": "sde-dpmsolver++"}
_LEADING = {"timestep_spacing": "leading"}  # the others' own is linspace: all timesteps evenly, both ends included
_CLASSES: Mapping[Sampler, tuple[Any, Mapping[str, Any]]] = {
    Sampler.EULER: (diffusers.EulerDiscreteScheduler, {}),
    Sampler.EULER_A: (EulerAncestral, {}),
    Sampler.HEUN: (Heun, {}),
    Sampler.DPM2: (Dpm2, {}),
    Sampler.DPM2_A: (Dpm2Ancestral, {}),
    Sampler.LMS: (Lms, {}),
    Sampler.DPMPP_2M: (diffusers.DPMSolverMultistepScheduler, {}),
    Sampler.DPMPP_2M_SDE: (diffusers.DPMSolverMultistepScheduler, _SDE),
    Sampler.DPMPP_SDE: (DpmSde, {}),
    Sampler.DPMPP_3M_SDE: (diffusers.DPMSolverMultistepScheduler, {**_SDE, "solver_order": 3}),
    Sampler.DDIM: (Ddim, _LEADING),
    Sampler.DDPM: (Ddpm, _LEADING),
    Sampler.PLMS: (diffusers.PNDMScheduler, {**_LEADING, "skip_prk_steps": True}),
    Sampler.UNIPC: (diffusers.UniPCMultistepScheduler, {"solver_order": 3}),  # bh2: bh1 divides by zero at zero noise
    Sampler.DEIS: (Deis, {}),
    Sampler.LCM: (diffusers.LCMScheduler, {}),
    Sampler.TCD: (diffusers.TCDScheduler, {}),
}
_FLAGS: Mapping[Schedule, str] = {
    Schedule.KARRAS: "use_karras_sigmas",
    Schedule.EXPONENTIAL: "use_exponential_sigmas",
    Schedule.BETA: "use_beta_sigmas",
}
_BY_TIMESTEPS = frozenset({Sampler.DDIM, Sampler.DDPM})
_DISTILLED = frozenset({Sampler.LCM, Sampler.TCD})
# Checkpoints are distilled at 50 steps; asked for more, they take more. Divisors of 1000, to start at pure noise.
_DISTILLATION_STEPS = (50, 100, 125, 200, 250, 500, 1000)
# These walk a schedule that is one longer, without its last level; what they made of it would be noise (k-diffusion, A1111).
_DISCARDS_LAST_LEVEL = frozenset({Sampler.DPM2, Sampler.DPM2_A, Sampler.DPMPP_3M_SDE})
_ENDS_LOWEST = frozenset({Schedule.KARRAS, Schedule.EXPONENTIAL, Schedule.BETA, Schedule.AYS})
# SD1.5's levels for ten steps; other numbers of steps are interpolated in the logarithm.
_AYS_SIGMAS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
_ALMOST_NO_SIGNAL = (
    2**-24
)  # of the power: with none at all the noise level would be infinite (the library's own number)
_CHECKPOINT_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
)


def make(sampler: Sampler, schedule: Schedule, steps: int, config: Mapping[str, Any]) -> Any:
    """Return a fresh scheduler object with its timesteps set, on the CPU.

    `config` is the checkpoint's scheduler config, of which betas, their end and the prediction type are used, not the spacing.
    For example Heun on Karras is `Heun(use_karras_sigmas=True, …)`; Heun on SGM uniform is the same object, but
    its function for Karras' levels returns `_sgm_uniform`'s.
    """
    cls, own = _CLASSES[sampler]
    options = {"timestep_spacing": "linspace", **_noise_schedule(config), **own, **_spacing(sampler, schedule, steps)}
    parameters = inspect.signature(cls).parameters
    made = cls(**{name: value for name, value in options.items() if name in parameters})
    levels = _levels(sampler, schedule, steps, config, made)
    if levels is not None:
        # The classes ask this for Karras' levels and then find the timesteps that belong to whatever it answers.
        made._convert_to_karras = lambda *_args, **_options: levels
    if sampler is Sampler.EULER_A:
        made.plain = make(Sampler.EULER, schedule, steps, config)
    made.set_timesteps(steps, device="cpu")
    _check(made, unet_calls(sampler, steps))
    return made


def _check(made: Any, calls: int) -> None:
    """Raise unless there is a timestep of the training for every call announced: any other would be of a made-up level."""
    last = made.config.num_train_timesteps - 1
    if len(made.timesteps) != calls or made.timesteps.min() < 0 or made.timesteps.max() > last:
        raise ArithmeticError(f"{type(made).__name__} has timesteps {made.timesteps.tolist()} for {calls} calls")


def _noise_schedule(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a class's options for the noise schedule that the checkpoint was trained on."""
    betas = {name: config[name] for name in _CHECKPOINT_KEYS if config.get(name) is not None}
    if config.get("rescale_betas_zero_snr"):
        betas["trained_betas"] = _zero_terminal_snr(betas)
    return {**betas, "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}


def _zero_terminal_snr(schedule: Mapping[str, Any]) -> list[float]:
    """Return a noise schedule's betas rescaled to zero terminal SNR: the last level is nearly pure noise.

    Only some of the library's classes can rescale by themselves.
    """
    library: Any = diffusers.DDIMScheduler(**schedule)
    alphas_bar = (1 - rescale_zero_terminal_snr(library.betas.double())).cumprod(0)
    alphas_bar[-1] = _ALMOST_NO_SIGNAL
    previous = torch.cat([torch.ones(1, dtype=torch.float64), alphas_bar[:-1]])
    betas: list[float] = (1 - alphas_bar / previous).tolist()
    return betas


def _spacing(sampler: Sampler, schedule: Schedule, steps: int) -> dict[str, Any]:
    """Say how a class spaces its timesteps or levels, where its own way is not the one meant."""
    if sampler in _DISTILLED:
        return {"original_inference_steps": next(known for known in _DISTILLATION_STEPS if known >= steps)}
    if sampler in _BY_TIMESTEPS and schedule is Schedule.SGM_UNIFORM:
        return {"timestep_spacing": "trailing"}
    # Spaced by themselves, the classes make their only step from the lowest level.
    spacing = {"timestep_spacing": "trailing"} if steps == 1 else {}
    if _discards_last_level(sampler, schedule):
        return {**spacing, "use_karras_sigmas": True}
    if schedule is Schedule.UNIFORM:
        return spacing
    return {**spacing, _FLAGS.get(schedule, "use_karras_sigmas"): True}


def _discards_last_level(sampler: Sampler, schedule: Schedule) -> bool:
    return sampler in _DISCARDS_LAST_LEVEL or (sampler is Sampler.DEIS and schedule in _ENDS_LOWEST)


def _levels(sampler: Sampler, schedule: Schedule, steps: int, config: Mapping[str, Any], made: Any) -> Sigmas | None:
    """Return the noise levels, highest first and without the final zero; None where the class computes them right by itself.

    A sampler in `_DISCARDS_LAST_LEVEL` gets Euler's levels for one step more, without the last: for 2 steps, Euler's for 3 are
    14.6, 1.3, 0.03, 0, and it walks 14.6, 1.3, 0.
    """
    if _discards_last_level(sampler, schedule):
        longer: Sigmas = make(Sampler.EULER, schedule, steps + 1, config).sigmas[:-2].double().numpy()
        return longer
    if sampler in _BY_TIMESTEPS:
        return None
    alphas = made.alphas_cumprod.double().numpy()
    trained = np.sqrt((1 - alphas) / alphas)
    match schedule:
        case Schedule.SGM_UNIFORM:
            return _sgm_uniform(trained, steps)
        case Schedule.SIMPLE:
            return _simple(trained, steps)
        case Schedule.AYS:
            return _align_your_steps(steps)
        case _:
            return None


def _sgm_uniform(trained: Sigmas, steps: int) -> Sigmas:
    """Levels at evenly spaced timesteps that stop one short of the end: of 1000, at 999 and 499.5 for two steps."""
    timesteps = np.linspace(len(trained) - 1, 0, steps + 1)[:-1]
    return np.interp(timesteps, np.arange(len(trained)), trained)


def _simple(trained: Sigmas, steps: int) -> Sigmas:
    """Every so many of the levels of the training, from the last: of 1000, numbers 999 and 499 for two steps."""
    return np.array([trained[-(1 + int(index * len(trained) / steps))] for index in range(steps)])


def _align_your_steps(steps: int) -> Sigmas:
    log_sigmas = np.log(_AYS_SIGMAS)
    return np.exp(np.interp(np.linspace(0, 1, steps), np.linspace(0, 1, len(log_sigmas)), log_sigmas))
