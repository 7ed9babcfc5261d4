from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from api.admission.resolution import StoredInputs, resolve
from api.admission.submissions import HiresChoice, LoraChoice, Submission
from shared.errors import InvalidRequest
from shared.vocabulary.params import MAX_SEED, GenerationParams
from shared.vocabulary.samplers import Sampler, Schedule
from tests.support.bad_fields import BAD_FIELDS

IMPOSSIBLE_TOGETHER: list[tuple[dict[str, Any], str]] = [
    ({"mask_image": "AA=="}, "mask_image needs an init_image"),
    ({"strength": 0.5}, "strength needs an init_image"),
    ({"inpaint": {}}, "inpaint needs a mask_image"),
    ({"init_image": "AA==", "hires": {}}, "hires needs txt2img"),
    ({"sampler": "plms", "schedule": "karras"}, "plms does not work with schedule karras; possible: uniform"),
    ({"hires": {"sampler": "lcm", "schedule": "beta"}}, "lcm does not work with schedule beta; possible: uniform"),
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


@pytest.mark.parametrize(("fields", "message"), IMPOSSIBLE_TOGETHER)
def test_what_does_not_go_together_is_refused_with_the_reason(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Submission.model_validate({"prompt": "x", **fields})


def test_loras_of_tags_and_field_are_found_and_added_up() -> None:
    submission = Submission(
        prompt="a cat <lora:ink:0.5> <lora:INK:te=0.1:unet=0.2>",
        loras=[LoraChoice(name="gold", weight=0.8, text_encoder_weight=0.0)],
    )
    params = resolve(submission, checkpoint="c", find_lora=str.lower)
    assert [(lora.name, lora.weight, lora.text_encoder_weight) for lora in params.loras] == [
        ("ink", pytest.approx(0.7), pytest.approx(0.6)),
        ("gold", 0.8, 0.0),
    ]
    assert params.prompt == submission.prompt


@pytest.mark.parametrize("text", ["<lora:a:999>", "<lora:a:6><lora:a:6>"])
def test_an_absurd_weight_in_a_tag_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="between -10 and 10"):
        resolve(Submission(prompt=text), checkpoint="c")


def test_too_many_tags_are_refused() -> None:
    text = "".join(f"<lora:{number}:1>" for number in range(40))
    with pytest.raises(InvalidRequest, match="40 LoRAs"):
        resolve(Submission(prompt=text), checkpoint="c")


def test_hires_takes_after_the_first_pass() -> None:
    submission = Submission(
        prompt="x", width=256, height=192, steps=9, sampler=Sampler.EULER, hires=HiresChoice(scale=1.5)
    )
    hires = resolve(submission, checkpoint="c").hires
    assert hires is not None
    assert (hires.width, hires.height, hires.steps, hires.strength) == (384, 288, 9, 0.7)
    assert (hires.sampler, hires.schedule, hires.prompt) == (Sampler.EULER, Schedule.UNIFORM, "x")


def test_hires_may_differ_in_everything() -> None:
    choice = HiresChoice(
        width=512, height=512, steps=3, sampler=Sampler.DDIM, prompt="y <lora:a:1>", guidance_scale=2.0
    )
    submission = Submission(prompt="x", schedule=Schedule.KARRAS, hires=choice)
    hires = resolve(submission, checkpoint="c").hires
    assert hires is not None
    assert (hires.sampler, hires.schedule, hires.guidance_scale) == (Sampler.DDIM, Schedule.UNIFORM, 2.0)
    assert [lora.name for lora in hires.loras] == ["a"]


@pytest.mark.parametrize(("found", "own"), [(None, None), ("c", None), ("d", "d")])
def test_hires_has_a_checkpoint_of_its_own_only_where_it_is_another(found: str | None, own: str | None) -> None:
    submission = Submission(prompt="x", hires=HiresChoice(checkpoint=found))
    hires = resolve(submission, checkpoint="c", hires_checkpoint=found).hires
    assert hires is not None
    assert hires.checkpoint == own


def test_hires_beyond_what_can_be_rendered_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="2048 px"):
        resolve(Submission(prompt="x", width=1024, height=512, hires=HiresChoice(scale=3.0)), checkpoint="c")


def test_an_init_image_sets_the_size_that_is_left_open() -> None:
    submission = Submission(prompt="x", init_image="AA==", height=128)
    params = resolve(submission, checkpoint="c", inputs=StoredInputs("inputs/a.png", (203, 999)))
    assert (params.kind, params.width, params.height, params.strength) == ("img2img", 200, 128, 0.75)
    tiny = resolve(Submission(prompt="x", init_image="AA=="), checkpoint="c", inputs=StoredInputs("k", (3, 9000)))
    assert (tiny.width, tiny.height) == (64, 2048)


def test_a_mask_brings_its_defaults() -> None:
    submission = Submission(prompt="x", init_image="AA==", mask_image="AA==")
    params = resolve(submission, checkpoint="c", inputs=StoredInputs("a", (64, 64), "m"))
    assert params.inpaint is not None
    assert (params.mask_image, params.inpaint.mask_blur, params.inpaint.only_masked) == ("m", 4, False)
