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
from tests.support.walking import PAIRS, SAME, DoublePrecision, distance, ours, sd15, theirs, toy
from worker.diffusion import plan as plans
from worker.diffusion import samplers
from worker.diffusion.plan import Call, Plan, Walk

EPSILON, VELOCITY = sd15(), sd15(prediction_type="v_prediction")
ZERO_SNR = sd15(prediction_type="v_prediction", rescale_betas_zero_snr=True)
MAX_REACH = 4
LEAST_SIGMA = 0.02916710
CLEAN = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(9))


def near(sampler: Sampler, config: dict[str, Any], steps: int) -> float:
    """Return how near to the library's a walk in float64 must come."""
    if config["prediction_type"] == "v_prediction" and sampler in (Sampler.EULER, Sampler.EULER_A):
        return steps * 2.0**-23  # here the library makes both coefficients of a plan's step in float32: 2^-24 each
    return SAME


@pytest.mark.filterwarnings("ignore:Should have:UserWarning")  # the library oversteps its own Brownian path by rounding
@pytest.mark.parametrize("config", [EPSILON, VELOCITY], ids=["epsilon", "velocity"])
@pytest.mark.parametrize(("sampler", "schedule"), PAIRS)
def test_a_walk_is_the_librarys_own_loop(sampler: Sampler, schedule: Schedule, config: dict[str, Any]) -> None:
    for steps in (1, 2, 9):
        if sampler is Sampler.DPMPP_SDE and steps == 1:
            continue  # the library makes a path of no length and fails
        plan = plans.make(sampler, schedule, steps, config)
        with DoublePrecision():
            apart = distance(ours(plan, toy, 5), theirs(sampler, schedule, steps, config, toy, 5))
        assert apart < near(sampler, config, steps), f"{steps} steps"


@pytest.mark.filterwarnings("ignore:Should have:UserWarning")
@pytest.mark.parametrize("config", [EPSILON, VELOCITY], ids=["epsilon", "velocity"])
@pytest.mark.parametrize(("sampler", "schedule"), PAIRS)
def test_a_walk_from_a_picture_is_the_librarys_own_loop(
    sampler: Sampler, schedule: Schedule, config: dict[str, Any]
) -> None:
    for steps, strength in ((9, 0.0), (9, 0.4), (6, 1.0)):
        last = img2img_steps(steps, strength)
        plan = plans.make(sampler, schedule, steps, config, last=last)
        with DoublePrecision():
            expected = theirs(sampler, schedule, steps, config, toy, 5, CLEAN.double(), last)
            apart = distance(ours(plan, toy, 5, CLEAN.double()), expected)
        assert apart < near(sampler, config, steps), f"strength {strength}"


@pytest.mark.filterwarnings("ignore:Should have:UserWarning")
@pytest.mark.parametrize(("sampler", "schedule"), PAIRS)
def test_a_walk_loses_no_more_to_float32_than_the_librarys_loop(sampler: Sampler, schedule: Schedule) -> None:
    steps = 9
    plan = plans.make(sampler, schedule, steps, EPSILON)
    with DoublePrecision():
        exact = ours(plan, toy, 5)
    lost, theirs_lost = (
        float((walked - exact).norm() / exact.norm())
        for walked in (ours(plan, toy, 5), theirs(sampler, schedule, steps, EPSILON, toy, 5))
    )
    # Both round every call a few times, in different order. The library may be lucky, but for the last bit of every call.
    assert 0 < lost < 4 * theirs_lost + len(plan.calls) * 2.0**-24


def test_a_long_walk_stays_true() -> None:
    for sampler in (Sampler.LMS, Sampler.UNIPC, Sampler.DPMPP_3M_SDE, Sampler.PLMS):
        schedule = SCHEDULES[sampler][0]
        plan = plans.make(sampler, schedule, 150, EPSILON)
        with DoublePrecision():
            assert distance(ours(plan, toy, 1), theirs(sampler, schedule, 150, EPSILON, toy, 1)) < SAME


def test_the_worked_example_is_what_plans_hold() -> None:
    """The numbers in the module's docstring, for whoever learns from them what a plan is."""
    heun = plans.make(Sampler.HEUN, Schedule.KARRAS, 2, EPSILON)
    assert [(call.step, round(call.timestep), round(call.input_scale, 3)) for call in heun.calls] == [
        (0, 999, 0.068),
        (0, 0, 1.0),
        (1, 0, 1.0),
    ]
    assert [terms(call) for call in heun.calls] == [
        {("x", 0): 1.0, ("prediction", 0): -14.585},
        {("x", 1): 1.0, ("prediction", 1): -7.293, ("prediction", 0): -7.293},
        {("x", 0): 1.0, ("prediction", 0): -0.029},
    ]
    second_row = plans.make(Sampler.DPMPP_2M, Schedule.KARRAS, 3, EPSILON).calls[1]
    assert terms(second_row) == {
        ("x", 0): 2.843,
        ("x", 1): -11.074,
        ("prediction", 0): -2.208,
        ("prediction", 1): 11.049,
    }


def terms(call: Call) -> dict[tuple[str, int], float]:
    return {(term.source, term.lag): round(term.weight, 3) for term in call.terms}


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
        with DoublePrecision():
            one, two, both = (walked_blindly(plan, seeds) for seeds in ((1,), (2,), (1, 2)))
        assert distance(one + two, both) < SAME, (sampler, schedule)


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
    clean, noise = CLEAN.double(), torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3)).double()
    walk = Walk(plan, plan.start[0] * clean + plan.start[1] * noise)
    for index, call in enumerate(plan.calls):
        signal = (1 + call.sigma**2) ** -0.5
        seen, expected = walk.model_input(), (clean + call.sigma * noise) * signal
        # Half of the samplers scale their input in float32: a square, a sum, a root, a quotient.
        rounded = 4 * 2.0**-24 * float(expected.abs().max())
        assert (seen - expected).abs().max() < rounded, index
        velocity = (noise - call.sigma * clean) * signal
        walk.advance(noise if config is EPSILON else velocity)
        # From the noise, the picture is what is left of the input, and that much enlarged.
        assert (walk.denoised() - clean).abs().max() < (rounded / signal if config is EPSILON else rounded), index
        walk.x = call.renoise[0] * clean + call.renoise[1] * noise


@pytest.mark.parametrize("sampler", [Sampler.DDIM, Sampler.DDPM])
@pytest.mark.parametrize("schedule", SCHEDULES[Sampler.DDIM])
@pytest.mark.parametrize("steps", [20, 30, 61, 103, 121, 122, 150, 201, 499, 994])
def test_a_step_ends_where_the_next_begins(sampler: Sampler, schedule: Schedule, steps: int) -> None:
    """Whatever the steps, divisors of 1000 or not: as much of the picture, and noise of the same power."""
    plan = plans.make(sampler, schedule, steps, EPSILON)
    ends_at = LEAST_SIGMA if sampler is Sampler.DDIM else 0  # the lowest level of the training, or the picture
    for index, call in enumerate(plan.calls):
        weights = {term.source: term.weight for term in call.terms}
        signal = (1 + call.sigma**2) ** -0.5
        clean, noise = weights["x"] * signal, weights["x"] * call.sigma * signal + weights.get("prediction", 0)
        power = noise**2 + sum(weight**2 for _, weight in call.fresh)
        at = plan.calls[index + 1].sigma if index + 1 < steps else ends_at
        # Roots of levels in float32, divided by the signal; DDPM takes 1 - alpha of nearly 1, and divides by the noise's power.
        rounded = 8 * 2.0**-24 / signal / (1 - signal**2 if sampler is Sampler.DDPM else 1)
        assert clean == pytest.approx((1 + at**2) ** -0.5, abs=rounded), index
        assert power == pytest.approx(at**2 / (1 + at**2), abs=rounded), index


@pytest.mark.parametrize(
    "library",
    [diffusers.EulerDiscreteScheduler, diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler],
)
def test_a_checkpoint_that_was_trained_to_the_very_noise_begins_there(library: Any) -> None:
    """Zero terminal SNR: the levels are those of the library's classes that know of it, for every sampler."""
    known = library(**{name: value for name, value in ZERO_SNR.items() if name in signature(library).parameters})
    for sampler in Sampler:
        made = samplers.make(sampler, SCHEDULES[sampler][0], 10, ZERO_SNR)
        # Both keep betas in float32, near 1 at the end: of alpha = 1 - beta that leaves few digits, and alphas are multiplied.
        rounded = 2 * (2.0**-24 / (1 - made.betas.double())).cumsum(0)
        assert ((made.alphas_cumprod / known.alphas_cumprod - 1).abs() < rounded).all(), sampler
        assert made.alphas_cumprod[-1] == pytest.approx(2.0**-24, rel=float(rounded[-1]))
    start = plans.make(Sampler.EULER, Schedule.UNIFORM, 10, ZERO_SNR).start
    assert start[1] == pytest.approx(2.0**12, rel=float(rounded[-1]))  # its power is 1 - 2^-24 to 2^-24


def test_what_replaces_the_latents_is_what_the_next_step_starts_from() -> None:
    """As inpainting does between any two steps: the library's object is handed the altered latents just the same."""
    for sampler in Sampler:
        schedule = SCHEDULES[sampler][0]
        plan = plans.make(sampler, schedule, 6, EPSILON)
        walk = Walk(plan, CLEAN.double() * plan.start[1])
        scheduler = samplers.make(sampler, schedule, 6, EPSILON)
        if hasattr(scheduler, "noise_sampler"):
            scheduler.noise_sampler = lambda *_sigmas: torch.zeros_like(CLEAN)
        x = CLEAN.double() * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            prediction = toy(scheduler.scale_model_input(x, timestep), float(timestep))
            with DoublePrecision(), Silence():
                x = scheduler.step(prediction, timestep, x, return_dict=False)[0] + 0.1
            walk.advance(toy(walk.model_input(), walk.call.timestep))
            walk.x = walk.x + 0.1
            assert distance(walk.x, x) < SAME, sampler


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
