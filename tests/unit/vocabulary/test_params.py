import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.vocabulary.params import MAX_SEED, GenerationParams
from shared.vocabulary.samplers import SCHEDULES, Sampler, Schedule
from tests.support.factories import hires, params


def test_every_sampler_has_a_default_schedule() -> None:
    assert set(SCHEDULES) == set(Sampler)
    assert all(SCHEDULES.values())


@given(seed=st.integers(0, MAX_SEED), num_images=st.integers(1, 16))
def test_seeds_count_up_and_wrap(seed: int, num_images: int) -> None:
    seeds = params(seed=seed, num_images=num_images).seeds
    assert len(set(seeds)) == num_images
    assert all(0 <= one <= MAX_SEED for one in seeds)
    assert [(one - seed) % (MAX_SEED + 1) for one in seeds] == list(range(num_images))


def test_an_impossible_schedule_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match="sampler plms does not work with schedule karras; possible: uniform"):
        params(sampler=Sampler.PLMS, schedule=Schedule.KARRAS)


def test_params_survive_the_row() -> None:
    original = params(prompt='日本 \U0001f600 "quoted" \\ ', seed=MAX_SEED)
    assert GenerationParams.model_validate(original.model_dump(mode="json")) == original


EULER = {"sampler": Sampler.EULER, "schedule": Schedule.UNIFORM}


def test_cost_counts_latent_pixels_rows_calls_and_images() -> None:
    one = params(width=64, height=128, steps=10, guidance_scale=1.0, num_images=1, **EULER)
    assert one.cost == 8 * 16 * 10
    guided = params(width=64, height=128, steps=10, guidance_scale=7.0, num_images=3, **EULER)
    assert guided.cost == 2 * 3 * one.cost
    second = hires(height=256, steps=5, strength=0.5)
    enlarged = guided.model_copy(update={"hires": second})
    assert enlarged.cost == guided.cost + 2 * 3 * 16 * 32 * 5
