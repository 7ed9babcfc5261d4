"""A plan is what diffusers' scheduler objects do, and a walk along it is a sum of few terms."""

from inspect import signature
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared.vocabulary.samplers import SCHEDULES, Sampler, Schedule, img2img_steps, unet_calls
from tests.support.walking import PAIRS, ours, sd15, theirs, toy
from worker.diffusion import plan as plans
from worker.diffusion import samplers
from worker.diffusion.plan import Plan, Walk

EPSILON, VELOCITY = sd15(), sd15(prediction_type="v_prediction")
ZERO_SNR = sd15(prediction_type="v_prediction", rescale_betas_zero_snr=True)
# How far a walk may be from the library's loop, as a share of the largest latent: rounding in float32, in another order.
# What the rounding of fp32 comes to; the library divides small differences of levels in fp32 where these lose more.
TOLERANCE = dict.fromkeys(Sampler, 5e-6) | dict.fromkeys(
    (Sampler.HEUN, Sampler.DPM2_A, Sampler.LMS, Sampler.DEIS), 2e-5
)
MAX_REACH = 4
CLEAN = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(9))


def distance(walked: Tensor, expected: Tensor) -> float:
    return float((walked - expected).abs().max() / expected.abs().max())


@pytest.mark.filterwarnings("ignore:Should have:UserWarning")  # the library oversteps its own Brownian path by rounding
@pytest.mark.parametrize("config", [EPSILON, VELOCITY], ids=["epsilon", "velocity"])
@pytest.mark.parametrize(("sampler", "schedule"), PAIRS)
def test_a_walk_is_the_librarys_own_loop(sampler: Sampler, schedule: Schedule, config: dict[str, Any]) -> None:
    for steps in (1, 2, 9):
        if sampler is Sampler.DPMPP_SDE and steps == 1:
            continue  # the library makes a path of no length and fails
        plan = plans.make(sampler, schedule, steps, config)
        assert distance(ours(plan, toy, 5), theirs(sampler, schedule, steps, config, toy, 5)) < TOLERANCE[sampler], (
            f"{steps} steps"
        )


@pytest.mark.filterwarnings("ignore:Should have:UserWarning")
@pytest.mark.parametrize("config", [EPSILON, VELOCITY], ids=["epsilon", "velocity"])
@pytest.mark.parametrize(("sampler", "schedule"), PAIRS)
def test_a_walk_from_a_picture_is_the_librarys_own_loop(
    sampler: Sampler, schedule: Schedule, config: dict[str, Any]
) -> None:
    for steps, strength in ((9, 0.0), (9, 0.4), (6, 1.0)):
        last = img2img_steps(steps, strength)
        plan = plans.make(sampler, schedule, steps, config, last=last)
        expected = theirs(sampler, schedule, steps, config, toy, 5, CLEAN, last)
        assert distance(ours(plan, toy, 5, CLEAN), expected) < TOLERANCE[sampler], f"strength {strength}"


def test_a_long_walk_stays_true() -> None:
    for sampler in (Sampler.LMS, Sampler.UNIPC, Sampler.DPMPP_3M_SDE, Sampler.PLMS):
        schedule = SCHEDULES[sampler][0]
        walked = ours(plans.make(sampler, schedule, 150, EPSILON), toy, 1)
        assert distance(walked, theirs(sampler, schedule, 150, EPSILON, toy, 1)) < 10 * TOLERANCE[sampler]


@given(st.sampled_from(PAIRS), st.integers(1, 60), st.floats(0, 1), st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_plan_keeps_its_promises(
    pair: tuple[Sampler, Schedule], steps: int, strength: float, starts_from_picture: bool
) -> None:
    last = img2img_steps(steps, strength) if starts_from_picture else None
    plan = plans.make(*pair, steps, EPSILON, last=last)
    assert len(plan.calls) == unet_calls(pair[0], steps, last=last)
    assert plan.reach <= MAX_REACH
    assert [call.step for call in plan.calls] == sorted(call.step for call in plan.calls)
    assert {call.step for call in plan.calls} == set(range(steps - (last or steps), steps))
    assert plan.calls[-1].renoise == (1.0, 0.0)
    draws = [draw for call in plan.calls for draw, _ in call.fresh]
    assert draws == sorted(set(draws))
    assert len(draws) <= plan.draws <= 2 * len(plan.calls)
    for index, call in enumerate(plan.calls):
        assert all(0 <= term.lag <= index for term in call.terms)


def test_a_step_is_linear() -> None:
    for sampler, schedule in PAIRS:
        plan = plans.make(sampler, schedule, 6, EPSILON)
        one, two, both = (walked_blindly(plan, seeds) for seeds in ((1,), (2,), (1, 2)))
        assert distance(one + two, both) < 1e-5, (sampler, schedule)


def walked_blindly(plan: Plan, seeds: tuple[int, ...]) -> Tensor:
    """Walk on predictions that do not look at the latents, added up over seeds."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def drawn() -> Tensor:
        return torch.stack([torch.randn((1, 4, 8, 8), generator=generator) for generator in generators]).sum(0)

    walk = Walk(plan, drawn())
    while not walk.is_over:
        walk.advance(drawn())
    return walk.x


@pytest.mark.parametrize(
    ("sampler", "schedule", "config"),
    [
        *((*pair, config) for pair in PAIRS for config in (EPSILON, VELOCITY)),
        *((sampler, schedules[0], ZERO_SNR) for sampler, schedules in SCHEDULES.items()),
    ],
)
def test_levels_are_those_of_a_perfect_model(sampler: Sampler, schedule: Schedule, config: dict[str, Any]) -> None:
    """Told the true noise at every call, a walk sees the levels it states, previews the picture, and ends there."""
    plan = plans.make(sampler, schedule, 8, config, last=8 if config is ZERO_SNR else 7)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3))
    walk = Walk(plan, plan.start[0] * CLEAN + plan.start[1] * noise)
    for index, call in enumerate(plan.calls):
        seen = walk.model_input()
        assert torch.allclose(seen, (CLEAN + call.sigma * noise) / (1 + call.sigma**2) ** 0.5, atol=1e-4), index
        velocity = (noise - call.sigma * CLEAN) / (1 + call.sigma**2) ** 0.5
        prediction = noise if config is EPSILON else velocity
        walk.advance(prediction)
        assert torch.allclose(walk.denoised(), CLEAN, atol=2e-4), index
        walk.x = call.renoise[0] * CLEAN + call.renoise[1] * noise


@pytest.mark.parametrize(
    "library",
    [diffusers.EulerDiscreteScheduler, diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler],
)
def test_a_checkpoint_that_was_trained_to_the_very_noise_begins_there(library: Any) -> None:
    """Zero terminal SNR: the levels are those of the library's classes that know of it, for every sampler."""
    known = library(**{name: value for name, value in ZERO_SNR.items() if name in signature(library).parameters})
    for sampler in Sampler:
        made = samplers.make(sampler, SCHEDULES[sampler][0], 10, ZERO_SNR)
        assert torch.allclose(made.alphas_cumprod, known.alphas_cumprod, rtol=1e-3, atol=1e-8), sampler
    start = plans.make(Sampler.EULER, Schedule.UNIFORM, 10, ZERO_SNR).start
    assert start[1] == pytest.approx(4096, rel=0.01)


def test_what_replaces_the_latents_is_what_the_next_step_starts_from() -> None:
    """As inpainting does between any two steps: the library's object is handed the altered latents just the same."""
    for sampler in Sampler:
        schedule = SCHEDULES[sampler][0]
        plan = plans.make(sampler, schedule, 6, EPSILON)
        walk = Walk(plan, CLEAN * plan.start[1])
        scheduler = samplers.make(sampler, schedule, 6, EPSILON)
        if hasattr(scheduler, "noise_sampler"):
            scheduler.noise_sampler = lambda *_sigmas: torch.zeros_like(CLEAN)
        x = CLEAN * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            prediction = toy(scheduler.scale_model_input(x, timestep), float(timestep))
            with Silence():
                x = scheduler.step(prediction, timestep, x, return_dict=False)[0] + 0.1
            walk.advance(toy(walk.model_input(), walk.call.timestep))
            walk.x = walk.x + 0.1
            assert distance(walk.x, x) < TOLERANCE[sampler], sampler


class Silence(torch.overrides.TorchFunctionMode):
    """Answers every draw of noise with zeros."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        drawn = torch.zeros if func is torch.randn else func
        kwargs = {name: value for name, value in (kwargs or {}).items() if drawn is func or name != "generator"}
        return drawn(*args, **kwargs)


def test_plans_are_made_once_and_shared() -> None:
    first = plans.make(Sampler.LMS, Schedule.KARRAS, 11, sd15())
    assert plans.make(Sampler.LMS, Schedule.KARRAS, 11, sd15()) is first
    assert plans.make(Sampler.LMS, Schedule.KARRAS, 11, VELOCITY) is not first


def test_a_walk_keeps_no_more_than_it_needs() -> None:
    walk = Walk(plans.make(Sampler.EULER, Schedule.UNIFORM, 9, EPSILON), CLEAN)
    while not walk.is_over:
        walk.advance(CLEAN)
    assert {len(kept) for kept in walk._history.values()} == {0, 1}


def test_a_step_that_failed_is_made_again_as_if_it_had_not() -> None:
    """Memory may run out in the middle of one: then nothing of it must be kept."""
    plan = plans.make(Sampler.UNIPC, Schedule.UNIFORM, 4, EPSILON)
    whole, failing = Walk(plan, CLEAN), Walk(plan, CLEAN)

    def fail(_x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no more")

    while not whole.is_over:
        prediction = whole.x.sin()
        whole.advance(prediction)
        with pytest.raises(torch.OutOfMemoryError):
            failing.advance(prediction, fail)
        failing.advance(prediction)
        assert torch.equal(failing.x, whole.x)
