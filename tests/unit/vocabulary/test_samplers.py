"""Names, counts and schedules: what goes together, how long it takes, and which noise levels are walked."""

from collections.abc import Iterator
from functools import cache
from itertools import pairwise, product
from math import isclose
from typing import Any

import diffusers
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.vocabulary.samplers import (
    EXTRA_IMG2IMG_STEP,
    MAX_SCHEDULE_STEPS,
    SAMPLER_LABELS,
    SCHEDULE_LABELS,
    SCHEDULES,
    TWO_CALLS_A_STEP,
    Sampler,
    Schedule,
    check_schedule,
    hires_steps,
    img2img_steps,
    unet_calls,
)
from tests.support.walking import PAIRS, sd15
from worker.diffusion import plan as plans
from worker.diffusion import samplers

FREE = [sampler for sampler in Sampler if len(SCHEDULES[sampler]) == len(Schedule)]
# The library takes 1 - alpha in float32, which at the least level leaves 0.00085 of what was rounded to 2^-24.
LEAST_ROUNDED = 2.0**-24 / 0.00085
strengths = st.floats(0, 1)
any_steps = st.integers(1, 150)
STEPS_ASKED = (*range(1, 151), 200, 333, MAX_SCHEDULE_STEPS)  # and some that second passes make
# Those that pick their timesteps out of the training's round for every number of steps in another way.
STEPS_MADE = dict.fromkeys(
    (Sampler.DDIM, Sampler.DDPM, Sampler.PLMS, Sampler.LCM, Sampler.TCD), range(1, MAX_SCHEDULE_STEPS + 1)
)


def sigmas(sampler: Sampler, schedule: Schedule, steps: int) -> list[float]:
    levels: list[float] = samplers.make(sampler, schedule, steps, sd15()).sigmas.tolist()
    return levels


def test_every_name_has_a_label_and_a_schedule() -> None:
    assert set(SAMPLER_LABELS) == set(SCHEDULES) == set(Sampler)
    assert set(SCHEDULE_LABELS) == set(Schedule)
    assert all(SCHEDULES.values())
    assert len(set(SAMPLER_LABELS.values())) == len(Sampler)


@pytest.mark.parametrize(
    ("sampler", "automatic"),
    [
        (Sampler.EULER_A, Schedule.UNIFORM),
        (Sampler.DPM2, Schedule.KARRAS),
        (Sampler.DPMPP_2M, Schedule.KARRAS),
        (Sampler.DPMPP_SDE, Schedule.KARRAS),
        (Sampler.DPMPP_2M_SDE, Schedule.EXPONENTIAL),
        (Sampler.DPMPP_3M_SDE, Schedule.EXPONENTIAL),
    ],
)
def test_automatic_is_what_a1111_means_by_it(sampler: Sampler, automatic: Schedule) -> None:
    assert SCHEDULES[sampler][0] is automatic


def test_an_impossible_pair_is_refused_with_the_possible_ones() -> None:
    check_schedule(Sampler.DDIM, Schedule.SGM_UNIFORM)
    with pytest.raises(ValueError, match=r"ddim does not work with schedule karras; possible: uniform, sgm_uniform"):
        check_schedule(Sampler.DDIM, Schedule.KARRAS)


@pytest.mark.parametrize(
    ("steps", "strength", "made"),
    [(20, 0.75, 16), (20, 1.0, 20), (20, 0.0, 1), (20, 0.5, 11), (1, 0.5, 1), (1, 0.0, 1), (150, 1.0, 150)],
)
def test_img2img_makes_the_steps_that_a1111_makes(steps: int, strength: float, made: int) -> None:
    assert img2img_steps(steps, strength) == made


@given(any_steps, strengths)
def test_img2img_makes_one_step_more_than_diffusers(steps: int, strength: float) -> None:
    made = img2img_steps(steps, strength)
    assert 1 <= made <= steps
    assert made in (int(steps * strength) + EXTRA_IMG2IMG_STEP, int(steps * min(strength, 0.999)) + 1, steps)


@given(any_steps, strengths)
def test_hires_makes_the_steps_asked_for_at_the_level_asked_for(steps: int, strength: float) -> None:
    whole, made = hires_steps(steps, strength)
    assert 1 <= made <= min(steps, whole)
    assert whole <= MAX_SCHEDULE_STEPS
    if whole < MAX_SCHEDULE_STEPS:
        assert made == steps
        assert img2img_steps(whole, strength) - made in (0, 1)


@pytest.fixture(scope="module")
def _remembered() -> Iterator[None]:
    """What the library looks up level by level and finds alike in all its classes is found once."""
    found: dict[float, Any] = {}

    def timestep(self: Any, sigma: Any, log_sigmas: Any) -> Any:
        level = float(sigma)
        if level not in found:
            found[level] = look_up(self, sigma, log_sigmas)
        return found[level]

    look_up = diffusers.EulerDiscreteScheduler._sigma_to_t
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scipy.stats.beta, "ppf", cache(scipy.stats.beta.ppf))
        for cls, _ in samplers._CLASSES.values():
            if hasattr(cls, "_sigma_to_t"):
                patch.setattr(cls, "_sigma_to_t", timestep)
        yield


@pytest.mark.usefixtures("_remembered")
@pytest.mark.parametrize(("sampler", "schedule"), PAIRS)
def test_as_many_calls_are_announced_as_are_planned(sampler: Sampler, schedule: Schedule) -> None:
    """For every number of steps, of which the last ones may be made, at timesteps of the training that fall."""
    for steps in STEPS_MADE.get(sampler, STEPS_ASKED):
        made = samplers.make(sampler, schedule, steps, sd15())
        assert len(made.timesteps) == unet_calls(sampler, steps), steps
        assert 0 <= made.timesteps.min() <= made.timesteps.max() <= 999, steps
        starts = made.timesteps[:: 2 if sampler in TWO_CALLS_A_STEP else 1]  # halfway calls reach below the next start
        assert (starts.diff() <= 0).all(), steps
        for skipped in {0, steps // 3, steps - 1}:
            planned = plans._timesteps(made, sampler, skipped)
            assert len(planned) == unet_calls(sampler, steps, last=steps - skipped), (steps, skipped)


@pytest.mark.parametrize("sampler", [Sampler.DDIM, Sampler.DDPM])
def test_trailing_timesteps_are_the_nearest_to_even_ones(sampler: Sampler) -> None:
    """In whole numbers: the library adds up floats, which end in a step too many at 61 steps and 61 other numbers."""
    for steps in range(1, MAX_SCHEDULE_STEPS + 1):
        timesteps = samplers.make(sampler, Schedule.SGM_UNIFORM, steps, sd15()).timesteps.tolist()
        assert len(timesteps) == steps
        for done, timestep in enumerate(timesteps):
            assert abs((timestep + 1) * steps - 1000 * (steps - done)) * 2 <= steps, (steps, done)


@pytest.mark.parametrize("timesteps", [[999, 499, -1], [1000, 500], [999]])
def test_a_list_that_is_not_what_was_announced_is_walked_by_nobody(
    monkeypatch: pytest.MonkeyPatch, timesteps: list[int]
) -> None:
    def wrong(self: Any, *_: Any, **__: Any) -> None:
        self.timesteps = torch.tensor(timesteps)

    monkeypatch.setattr(samplers.Ddim, "set_timesteps", wrong)
    with pytest.raises(ArithmeticError, match="for 2 calls"):
        samplers.make(Sampler.DDIM, Schedule.SGM_UNIFORM, 2, sd15())


def test_no_strength_of_a_second_pass_needs_a_longer_schedule_than_there_is() -> None:
    for steps, hundredths in product(STEPS_ASKED, range(101)):
        whole, made = hires_steps(steps, hundredths / 100)
        assert 1 <= made <= min(steps, whole)
        assert whole <= MAX_SCHEDULE_STEPS


@pytest.mark.parametrize(("sampler", "schedule"), PAIRS)
def test_the_only_step_starts_from_pure_noise(sampler: Sampler, schedule: Schedule) -> None:
    assert samplers.make(sampler, schedule, 1, sd15()).timesteps[0] >= 998


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize(("sampler", "schedule"), PAIRS)
def test_the_spacing_of_the_checkpoint_does_not_count(sampler: Sampler, schedule: Schedule, spacing: str) -> None:
    told = samplers.make(sampler, schedule, 12, sd15(timestep_spacing=spacing, clip_sample=True, steps_offset=0))
    assert told.timesteps.equal(samplers.make(sampler, schedule, 12, sd15()).timesteps)
    assert not told.config.get("clip_sample")


@pytest.mark.parametrize("schedule", [Schedule.UNIFORM, Schedule.KARRAS, Schedule.EXPONENTIAL, Schedule.BETA])
@pytest.mark.parametrize(
    ("sampler", "cls", "options"),
    [
        (Sampler.EULER, diffusers.EulerDiscreteScheduler, {}),
        (Sampler.HEUN, diffusers.HeunDiscreteScheduler, {}),
        (Sampler.LMS, diffusers.LMSDiscreteScheduler, {}),
        (Sampler.DPMPP_2M, diffusers.DPMSolverMultistepScheduler, {}),
        (Sampler.DPMPP_2M_SDE, diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
        (Sampler.DPMPP_SDE, diffusers.DPMSolverSDEScheduler, {}),
        (Sampler.UNIPC, diffusers.UniPCMultistepScheduler, {"solver_order": 3}),
    ],
)
def test_what_the_library_knows_is_left_to_it(
    sampler: Sampler, cls: Any, options: dict[str, Any], schedule: Schedule
) -> None:
    flag = {} if schedule is Schedule.UNIFORM else {f"use_{schedule}_sigmas": True}
    theirs = cls.from_config(sd15(), **options, **flag)
    theirs.set_timesteps(13)
    ours = samplers.make(sampler, schedule, 13, sd15())
    assert ours.sigmas.equal(theirs.sigmas)
    assert ours.timesteps.equal(theirs.timesteps)


@pytest.mark.parametrize("schedule", Schedule)
def test_euler_ancestral_walks_the_levels_of_euler(schedule: Schedule) -> None:
    assert sigmas(Sampler.EULER_A, schedule, 9) == sigmas(Sampler.EULER, schedule, 9)


@pytest.mark.parametrize("sampler", FREE)
def test_align_your_steps_are_the_levels_of_the_paper(sampler: Sampler) -> None:
    ends = [14.615, 0.029] if sampler in (Sampler.EULER, Sampler.DPMPP_2M, Sampler.UNIPC) else [14.615]
    levels = sigmas(sampler, Schedule.AYS, 11)
    assert all(any(isclose(end, level, rel_tol=1e-6) for level in levels) for end in ends)
    assert levels == sorted(levels, reverse=True)


def test_align_your_steps_go_through_every_level_of_the_paper() -> None:
    levels = sigmas(Sampler.EULER, Schedule.AYS, 11)
    known = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029, 0]
    assert levels == pytest.approx(known, rel=1e-6)


def test_simple_takes_every_so_many_levels_of_the_training() -> None:
    trained = samplers.make(Sampler.EULER, Schedule.UNIFORM, 1000, sd15()).sigmas.tolist()
    assert sigmas(Sampler.EULER, Schedule.SIMPLE, 10)[:-1] == pytest.approx(trained[:1000:100], rel=2.0**-22)


@pytest.mark.parametrize("sampler", [Sampler.DPM2, Sampler.DPM2_A, Sampler.DPMPP_3M_SDE])
@pytest.mark.parametrize("schedule", Schedule)
def test_the_last_level_is_discarded(sampler: Sampler, schedule: Schedule) -> None:
    longer = sigmas(Sampler.EULER, schedule, 8)
    assert sorted({*longer[:-2], 0.0}) == pytest.approx(sorted(set(sigmas(sampler, schedule, 7))), rel=1e-6)


@pytest.mark.parametrize("schedule", Schedule)
def test_no_call_of_deis_is_for_nothing(schedule: Schedule) -> None:
    levels = sigmas(Sampler.DEIS, schedule, 9)
    assert len(set(levels)) == 10
    assert levels[-1] == pytest.approx(0.0291671, rel=LEAST_ROUNDED)


def test_ddim_walks_the_timesteps_of_its_authors() -> None:
    """Evenly spaced from one on, as in the original implementation (Song, Meng, Ermon 2020)."""
    made = samplers.make(Sampler.DDIM, Schedule.UNIFORM, 20, sd15())
    assert made.timesteps.tolist() == [*range(951, 0, -50)]


def test_karras_levels_are_those_of_the_formula() -> None:
    """Equation 5 of Karras et al. 2022 with rho 7, between SD1.5's least and greatest level."""
    count, least, greatest = 10, 0.0291671, 14.614642
    ramp = [at / (count - 1) for at in range(count)]
    published = [(greatest ** (1 / 7) + at * (least ** (1 / 7) - greatest ** (1 / 7))) ** 7 for at in ramp]
    assert sigmas(Sampler.EULER, Schedule.KARRAS, count)[:count] == pytest.approx(published, rel=LEAST_ROUNDED)


def test_exponential_levels_fall_by_one_factor() -> None:
    levels = sigmas(Sampler.EULER, Schedule.EXPONENTIAL, 10)[:10]
    factors = [below / above for above, below in pairwise(levels)]
    assert factors == pytest.approx([factors[0]] * 9, rel=2.0**-22)
    assert (levels[0], levels[-1]) == pytest.approx((14.614642, 0.0291671), rel=LEAST_ROUNDED)
