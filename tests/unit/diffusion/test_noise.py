"""Noise is drawn from the seed alone, in diffusers' order."""

import pytest
import torch

from shared.vocabulary.samplers import SCHEDULES, Sampler, Schedule
from tests.support.walking import sd15
from worker.diffusion import noise as noises
from worker.diffusion import plan as plans
from worker.diffusion.noise import FreshNoise, Noise, slerp


def test_draws_follow_one_another_as_from_a_generator_of_the_seed() -> None:
    noise = Noise(7, width=64, height=128)
    generator = torch.Generator().manual_seed(7)
    for drawn in (noise.unit(), noise.first(), noise.unit()):
        assert drawn.equal(torch.randn((1, 4, 16, 8), generator=generator))


def test_the_first_noise_depends_on_seed_and_size_only() -> None:
    assert Noise(7, width=64, height=64).first().equal(Noise(7, width=64, height=64).first())
    assert not Noise(7, width=64, height=64).first().equal(Noise(8, width=64, height=64).first())


@pytest.mark.parametrize("sampler", [Sampler.EULER_A, Sampler.DPMPP_SDE])
def test_a_call_that_is_made_again_adds_the_same(monkeypatch: pytest.MonkeyPatch, sampler: Sampler) -> None:
    monkeypatch.setattr(noises, "DRAWN_AHEAD_BYTES", 0)
    plan = plans.make(sampler, Schedule.KARRAS, 5, sd15())
    once, twice = (Noise(3, width=64, height=64).fresh(plan) for _ in range(2))
    assert isinstance(once, FreshNoise)
    assert isinstance(twice, FreshNoise)
    for call in range(len(plan.calls)):
        first = twice[call]
        assert twice[call].equal(first)
        assert once[call].equal(first)


def test_fresh_noise_is_summed_up_by_call() -> None:
    plan = plans.make(Sampler.EULER_A, Schedule.UNIFORM, 5, sd15())
    fresh = drawn_ahead(Noise(3, width=64, height=64), plan)
    assert fresh.shape == (5, 1, 4, 8, 8)
    generator = torch.Generator().manual_seed(3)
    for call, total in zip(plan.calls, fresh, strict=True):
        drawn = torch.randn((1, 4, 8, 8), generator=generator)
        assert total.allclose(drawn * sum(weight for _, weight in call.fresh))


@pytest.mark.parametrize("sampler", [Sampler.EULER_A, Sampler.DDPM, Sampler.DPMPP_SDE, Sampler.DPM2_A])
def test_noise_too_large_to_keep_is_drawn_when_its_call_comes(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plans.make(sampler, SCHEDULES[sampler][0], 6, sd15())
    ahead = drawn_ahead(Noise(3, width=64, height=64), plan)
    monkeypatch.setattr(noises, "DRAWN_AHEAD_BYTES", 0)
    later = Noise(3, width=64, height=64).fresh(plan)
    assert isinstance(later, FreshNoise)
    for index, (call, total) in enumerate(zip(plan.calls, ahead, strict=True)):
        if call.fresh:
            assert total.equal(later[index])


def drawn_ahead(noise: Noise, plan: plans.Plan) -> torch.Tensor:
    fresh = noise.fresh(plan)
    assert isinstance(fresh, torch.Tensor)
    return fresh


def test_a_plan_that_draws_nothing_costs_nothing() -> None:
    assert Noise(3, width=64, height=64).fresh(plans.make(Sampler.EULER, Schedule.UNIFORM, 5, sd15())) is None


def test_a_brownian_path_grows_of_the_seed_and_leaves_the_other_draws_alone() -> None:
    plan = plans.make(Sampler.DPMPP_SDE, Schedule.KARRAS, 6, sd15())
    noise = Noise(3, width=64, height=64)
    noise.first()
    fresh, again = drawn_ahead(noise, plan), drawn_ahead(Noise(3, width=64, height=64), plan)
    other = drawn_ahead(Noise(4, width=64, height=64), plan)
    assert fresh.equal(again)
    assert not fresh.equal(other)


@pytest.mark.parametrize(("strength", "seed"), [(0.0, 1), (1.0, 2)])
def test_the_ends_of_a_variation_are_the_two_seeds(strength: float, seed: int) -> None:
    varied = Noise(1, width=64, height=64).first(2, strength)
    assert varied.allclose(
        Noise(seed, width=64, height=64).first(), rtol=2.0**-22, atol=0
    )  # times a sine and by it again


def test_a_variation_lies_between_and_keeps_its_size() -> None:
    own, other = (Noise(seed, width=256, height=256).first() for seed in (1, 2))
    varied = Noise(1, width=256, height=256).first(2, 0.3)
    assert varied.std() == pytest.approx(1, abs=0.05)
    assert (varied - own).norm() < (varied - other).norm()


def test_a_variation_turns_each_column_along_the_circle() -> None:
    low, high = torch.zeros(2, 1, 4, 2, 2)
    low[..., 0, :], high[..., 1, :] = 1, 1
    halfway = slerp(0.5, low, high)
    assert halfway.allclose(torch.full_like(halfway, 0.5**0.5))


def test_a_variation_by_the_same_seed_is_no_variation() -> None:
    own = Noise(1, width=64, height=64).first()
    assert Noise(1, width=64, height=64).first(1, 0.4).allclose(own)
