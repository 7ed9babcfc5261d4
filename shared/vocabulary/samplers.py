"""Samplers and schedules: names, valid pairs and UNet calls per image.

A sampler turns predictions into the next latents; a schedule lists the noise levels (sigmas) that it walks down. Names and
counts only: the maths is in `worker.diffusion`, which renders every pair that is listed here.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class Sampler(StrEnum):
    """A rule that turns noise predictions into the next latents."""

    EULER = "euler"
    EULER_A = "euler_a"
    HEUN = "heun"
    DPM2 = "dpm2"
    DPM2_A = "dpm2_a"
    LMS = "lms"
    DPMPP_2M = "dpmpp_2m"
    DPMPP_2M_SDE = "dpmpp_2m_sde"
    DPMPP_SDE = "dpmpp_sde"
    DPMPP_3M_SDE = "dpmpp_3m_sde"
    DDIM = "ddim"
    DDPM = "ddpm"
    PLMS = "plms"
    UNIPC = "unipc"
    DEIS = "deis"
    LCM = "lcm"
    TCD = "tcd"


class Schedule(StrEnum):
    """A list of noise levels (sigmas) that a sampler walks down."""

    UNIFORM = "uniform"
    KARRAS = "karras"
    EXPONENTIAL = "exponential"
    BETA = "beta"
    SGM_UNIFORM = "sgm_uniform"
    SIMPLE = "simple"
    AYS = "ays"


# The img2img and hires rules of the AUTOMATIC1111 web UI. Diffusers' pipelines make int(steps * strength) steps, one fewer.
EXTRA_IMG2IMG_STEP = 1
MAX_STRENGTH = 0.999
MAX_SCHEDULE_STEPS = 999  # a longer schedule would repeat the levels that the checkpoint was trained on

TWO_CALLS_A_STEP = frozenset({Sampler.HEUN, Sampler.DPM2, Sampler.DPM2_A, Sampler.DPMPP_SDE})


def _schedules() -> dict[Sampler, tuple[Schedule, ...]]:
    def free(default: Schedule) -> tuple[Schedule, ...]:
        return (default, *(schedule for schedule in Schedule if schedule is not default))

    return {
        Sampler.EULER: free(Schedule.UNIFORM),
        Sampler.EULER_A: free(Schedule.UNIFORM),
        Sampler.HEUN: free(Schedule.UNIFORM),
        Sampler.DPM2: free(Schedule.KARRAS),
        Sampler.DPM2_A: free(Schedule.KARRAS),
        Sampler.LMS: free(Schedule.UNIFORM),
        Sampler.DPMPP_2M: free(Schedule.KARRAS),
        Sampler.DPMPP_2M_SDE: free(Schedule.EXPONENTIAL),
        Sampler.DPMPP_SDE: free(Schedule.KARRAS),
        Sampler.DPMPP_3M_SDE: free(Schedule.EXPONENTIAL),
        # These step between the timesteps that the checkpoint was trained on, evenly or not at all.
        Sampler.DDIM: (Schedule.UNIFORM, Schedule.SGM_UNIFORM),
        Sampler.DDPM: (Schedule.UNIFORM, Schedule.SGM_UNIFORM),
        Sampler.PLMS: (Schedule.UNIFORM,),
        Sampler.UNIPC: free(Schedule.UNIFORM),
        Sampler.DEIS: free(Schedule.UNIFORM),
        Sampler.LCM: (Schedule.UNIFORM,),
        Sampler.TCD: (Schedule.UNIFORM,),
    }


# The first of each is what "automatic" means.
SCHEDULES: Mapping[Sampler, tuple[Schedule, ...]] = MappingProxyType(_schedules())

SAMPLER_LABELS: Mapping[Sampler, str] = MappingProxyType(
    {
        Sampler.EULER: "Euler",
        Sampler.EULER_A: "Euler a",
        Sampler.HEUN: "Heun",
        Sampler.DPM2: "DPM2",
        Sampler.DPM2_A: "DPM2 a",
        Sampler.LMS: "LMS",
        Sampler.DPMPP_2M: "DPM++ 2M",
        Sampler.DPMPP_2M_SDE: "DPM++ 2M SDE",
        Sampler.DPMPP_SDE: "DPM++ SDE",
        Sampler.DPMPP_3M_SDE: "DPM++ 3M SDE",
        Sampler.DDIM: "DDIM",
        Sampler.DDPM: "DDPM",
        Sampler.PLMS: "PLMS",
        Sampler.UNIPC: "UniPC",
        Sampler.DEIS: "DEIS",
        Sampler.LCM: "LCM",
        Sampler.TCD: "TCD",
    }
)

SCHEDULE_LABELS: Mapping[Schedule, str] = MappingProxyType(
    {
        Schedule.UNIFORM: "Uniform",
        Schedule.KARRAS: "Karras",
        Schedule.EXPONENTIAL: "Exponential",
        Schedule.BETA: "Beta",
        Schedule.SGM_UNIFORM: "SGM Uniform",
        Schedule.SIMPLE: "Simple",
        Schedule.AYS: "Align Your Steps",
    }
)


def check_schedule(sampler: Sampler, schedule: Schedule) -> None:
    """Raise `ValueError`, naming the valid schedules, if the sampler does not work with this one."""
    if schedule not in SCHEDULES[sampler]:
        possible = ", ".join(SCHEDULES[sampler])
        raise ValueError(f"sampler {sampler} does not work with schedule {schedule}; possible: {possible}")


def unet_calls(sampler: Sampler, steps: int, *, last: int | None = None) -> int:
    """Return the UNet calls of one image for a schedule of `steps`, or for its `last` steps alone."""
    made = steps if last is None else last
    if sampler in TWO_CALLS_A_STEP:
        return 2 * made - 1  # the last step ends at zero noise, where there is nothing to correct with
    if sampler is Sampler.PLMS and made > 1:
        return made + 1  # the first step is made twice, to have a history
    return made


def img2img_steps(steps: int, strength: float) -> int:
    """Return how many of the last of `steps` img2img makes at a denoising strength (0 to 1)."""
    return min(steps, int(min(strength, MAX_STRENGTH) * steps) + EXTRA_IMG2IMG_STEP)


def hires_steps(steps: int, strength: float) -> tuple[int, int]:
    """Return the length of the schedule whose last `steps` begin at a denoising strength (0 to 1), and the steps to make.

    These are fewer than `steps` only where so little noise would need a schedule longer than `MAX_SCHEDULE_STEPS`.
    """
    share = min(strength, MAX_STRENGTH)
    if share * MAX_SCHEDULE_STEPS < steps:
        return MAX_SCHEDULE_STEPS, max(1, int(share * MAX_SCHEDULE_STEPS))
    return int(steps / share), steps
