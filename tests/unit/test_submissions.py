import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from api.v1.submissions import Submission, resolve
from shared.params import MAX_SEED, GenerationParams, Sampler, Schedule

BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": 7}, "prompt"),
    ({"prompt": "x" * 100_000}, "prompt"),
    ({"prompt": "a\0b"}, "prompt"),
    ({"prompt": "\ud800"}, "prompt"),
    ({"prompt": "x", "promt": "y"}, "promt"),
    ({"prompt": "x", "steps": "20"}, "steps"),
    ({"prompt": "x", "steps": 20.5}, "steps"),
    ({"prompt": "x", "steps": True}, "steps"),
    ({"prompt": "x", "steps": 0}, "steps"),
    ({"prompt": "x", "steps": 151}, "steps"),
    ({"prompt": "x", "guidance_scale": math.nan}, "guidance_scale"),
    ({"prompt": "x", "guidance_scale": math.inf}, "guidance_scale"),
    ({"prompt": "x", "guidance_scale": -1.0}, "guidance_scale"),
    ({"prompt": "x", "width": 63}, "width"),
    ({"prompt": "x", "width": 65}, "width"),
    ({"prompt": "x", "height": 2056}, "height"),
    ({"prompt": "x", "height": math.nan}, "height"),
    ({"prompt": "x", "num_images": 0}, "num_images"),
    ({"prompt": "x", "num_images": 17}, "num_images"),
    ({"prompt": "x", "seed": -2}, "seed"),
    ({"prompt": "x", "seed": 2**32}, "seed"),
    ({"prompt": "x", "seed": 10**400}, "seed"),
    ({"prompt": "x", "sampler": "euler_z"}, "sampler"),
    ({"prompt": "x", "schedule": "cosine"}, "schedule"),
    ({"prompt": "x", "checkpoint": 5}, "checkpoint"),
]


@pytest.mark.parametrize(("body", "field"), BAD_FIELDS)
def test_a_bad_field_is_refused_by_name(body: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Submission.model_validate(body)
    assert field in {str(error["loc"][0]) for error in refused.value.errors(include_input=False, include_url=False)}


def test_defaults_leave_nothing_open() -> None:
    params = resolve(Submission(prompt="x"), checkpoint="c")
    assert (params.steps, params.width, params.height, params.num_images) == (20, 512, 512, 1)
    assert (params.sampler, params.schedule) == (Sampler.DPMPP_2M, Schedule.KARRAS)
    assert params.checkpoint == "c"


@pytest.mark.parametrize("seed", [None, -1])
def test_an_absent_seed_is_drawn(seed: int | None) -> None:
    drawn = {resolve(Submission(prompt="x", seed=seed), checkpoint="c").seed for _ in range(8)}
    assert len(drawn) > 1
    assert all(0 <= one <= MAX_SEED for one in drawn)


def test_the_schedule_defaults_to_the_samplers_own() -> None:
    assert resolve(Submission(prompt="x", sampler=Sampler.EULER_A), checkpoint="c").schedule is Schedule.UNIFORM


@given(
    st.fixed_dictionaries(
        {"prompt": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=50)},
        optional={
            "steps": st.integers(1, 150),
            "guidance_scale": st.floats(0, 50),
            "width": st.integers(8, 256).map(lambda n: n * 8),
            "seed": st.integers(-1, MAX_SEED),
            "num_images": st.integers(1, 16),
            "sampler": st.sampled_from([sampler.value for sampler in Sampler]),
        },
    )
)
def test_whatever_is_accepted_resolves_to_storable_params(body: dict[str, Any]) -> None:
    params = resolve(Submission.model_validate(body), checkpoint="c")
    assert GenerationParams.model_validate_json(params.model_dump_json()) == params
