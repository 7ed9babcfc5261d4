"""From the A1111 dialect's requests to submissions: the rules of the original, and every request has an answer."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from api.a1111 import infotext_parser, names, options, styles, translate
from api.a1111.errors import Impossible, InitImageMissing, SamplerNotFound, ScriptNotFound
from api.a1111.names import KnownCheckpoints
from api.a1111.requests import Img2Img, Txt2Img
from api.a1111.styles import Style
from api.a1111.translate import FarmFacts, Translation
from shared.errors import FarmError
from shared.vocabulary import infotext
from shared.vocabulary.params import Inpaint, MaskFill, ResizeMode, Upscaler, Variation
from shared.vocabulary.samplers import SAMPLER_LABELS, SCHEDULES, Sampler, Schedule, hires_steps, img2img_steps
from tests.support import factories
from tests.support.factories import params

FARM = FarmFacts(
    options={"sd_model_checkpoint": "farm-demo.safetensors"},
    checkpoints=KnownCheckpoints(
        {"farm-demo": None, "other": "0123456789ab" + "0" * 52}, {"Broken": "Broken.safetensors: truncated."}
    ),
    styles={"warm": Style("warm", "warm {prompt}, soft", "cold"), "plain": Style("plain", "flat", "")},
    draw=lambda last: last,
)
ECHO = json.loads(
    '{"prompt":"a cat","negative_prompt":"","styles":null,"seed":-1,"subseed":-1,"subseed_strength":0,'
    '"seed_resize_from_h":-1,"seed_resize_from_w":-1,"sampler_name":null,"scheduler":null,"batch_size":1,"n_iter":1,'
    '"steps":20,"cfg_scale":7.0,"width":512,"height":512,"restore_faces":null,"tiling":null,'
    '"do_not_save_samples":false,"do_not_save_grid":false,"eta":null,"denoising_strength":null,"s_min_uncond":null,'
    '"s_churn":null,"s_tmax":null,"s_tmin":null,"s_noise":null,"override_settings":null,'
    '"override_settings_restore_afterwards":true,"refiner_checkpoint":null,"refiner_switch_at":null,'
    '"disable_extra_networks":false,"firstpass_image":null,"comments":null,"enable_hr":false,"firstphase_width":0,'
    '"firstphase_height":0,"hr_scale":2.0,"hr_upscaler":null,"hr_second_pass_steps":0,"hr_resize_x":0,"hr_resize_y":0,'
    '"hr_checkpoint_name":null,"hr_sampler_name":null,"hr_scheduler":null,"hr_prompt":"","hr_negative_prompt":"",'
    '"force_task_id":null,"sampler_index":"Euler","script_name":null,"script_args":[],"send_images":true,'
    '"save_images":false,"alwayson_scripts":{},"infotext":null}'
)


def txt2img(farm: FarmFacts = FARM, **fields: Any) -> Translation:
    return translate.txt2img(Txt2Img.model_validate(fields), farm)


def img2img(farm: FarmFacts = FARM, **fields: Any) -> Translation:
    return translate.img2img(Img2Img.model_validate({"init_images": ["aGk="], **fields}), farm)


def test_the_echo_is_the_originals_to_the_byte() -> None:
    assert json.dumps(Txt2Img.model_validate({"prompt": "a cat", "steps": 20, "seed": -1}).echo()) == json.dumps(ECHO)


def test_an_img2img_echo_has_its_57_fields_and_no_pictures() -> None:
    echo = Img2Img.model_validate({"init_images": ["x"], "mask": "y"}).echo()
    assert (len(echo), echo["init_images"], echo["mask"], echo["denoising_strength"]) == (57, None, None, 0.75)
    shown = Img2Img.model_validate({"init_images": ["x"], "mask": "y", "include_init_images": True}).echo()
    assert (shown["init_images"], shown["mask"]) == (["x"], "y")


def test_defaults_are_the_originals() -> None:
    (one,) = txt2img().submissions
    assert (one.steps, one.guidance_scale, one.width, one.height) == (50, 7.0, 512, 512)
    assert (one.sampler, one.schedule, one.checkpoint, one.clip_skip) == (Sampler.EULER, None, "farm-demo", 1)
    assert one.seed == 2**32 - 3


@pytest.mark.parametrize(
    ("field", "sent", "meant"),
    [
        ("steps", "20", 20),
        ("steps", 12.5, 12),
        ("steps", 10.0, 10),
        ("steps", None, 50),
        ("steps", "", 50),
        ("batch_size", True, 1),
        ("seed", "5", 5),
        ("enable_hr", "true", True),
        ("enable_hr", "False", False),
        ("enable_hr", 0, False),
        ("cfg_scale", "4.5", 4.5),
        ("cfg_scale", 7, 7),
        ("prompt", 5, "5"),
        ("styles", None, None),
        ("alwayson_scripts", [], {}),
        ("hr_scale", "1.0", 1.0),
        ("s_tmax", 1e308, 1e308),
    ],
)
def test_what_clients_really_send(field: str, sent: object, meant: object) -> None:
    assert getattr(Txt2Img.model_validate({field: sent, "unknown": 1}), field) == meant


@pytest.mark.parametrize(
    ("field", "sent"),
    [
        ("steps", "many"),
        ("steps", []),
        ("cfg_scale", float("nan")),
        ("seed", "9" * 99),
        ("width", "1e999"),
        ("prompt", []),
    ],
)
def test_what_nobody_can_mean(field: str, sent: object) -> None:
    with pytest.raises(ValidationError) as refused:
        Txt2Img.model_validate({field: sent})
    assert refused.value.errors()[0]["loc"][0] == field


@pytest.mark.parametrize(
    ("name", "scheduler", "meant"),
    [
        ("DPM++ 2M", None, (Sampler.DPMPP_2M, None)),
        ("DPM++ 2M", "automatic", (Sampler.DPMPP_2M, None)),
        ("DPM++ 2M Karras", "automatic", (Sampler.DPMPP_2M, Schedule.KARRAS)),
        ("dpm++ 2m sde EXPONENTIAL", None, (Sampler.DPMPP_2M_SDE, Schedule.EXPONENTIAL)),
        ("DPM++ SDE Karras", None, (Sampler.DPMPP_SDE, Schedule.KARRAS)),
        ("DPM++ 3M SDE Karras", None, (Sampler.DPMPP_3M_SDE, Schedule.KARRAS)),
        ("LMS Karras", None, (Sampler.LMS, Schedule.KARRAS)),
        ("DPM2 a Karras", None, (Sampler.DPM2_A, Schedule.KARRAS)),
        ("DPM++ 2M Karras", "exponential", (Sampler.DPMPP_2M, Schedule.EXPONENTIAL)),
        ("Euler", "SGM Uniform", (Sampler.EULER, Schedule.SGM_UNIFORM)),
        ("Euler", "SGMUniform", (Sampler.EULER, Schedule.SGM_UNIFORM)),
        ("Euler", "align_your_steps", (Sampler.EULER, Schedule.AYS)),
        ("Euler", "Align Your Steps", (Sampler.EULER, Schedule.AYS)),
        ("Euler", "never heard of", (Sampler.EULER, None)),
        ("Euler a Automatic", None, (Sampler.EULER_A, None)),
        ("k_euler_a", None, (Sampler.EULER_A, None)),
        ("k_dpmpp_2m", None, (Sampler.DPMPP_2M, None)),
        ("euler_a", None, (Sampler.EULER_A, None)),
        ("DDIM", "karras", (Sampler.DDIM, None)),
        ("PLMS", None, (Sampler.PLMS, None)),
        ("UniPC", None, (Sampler.UNIPC, None)),
    ],
)
def test_samplers_by_any_of_their_names(
    name: str, scheduler: str | None, meant: tuple[Sampler, Schedule | None]
) -> None:
    assert names.walk(name, scheduler) == meant


def test_dpmpp_2m_alone_means_karras() -> None:
    assert SCHEDULES[Sampler.DPMPP_2M][0] is Schedule.KARRAS


@pytest.mark.parametrize("name", ["DPM fast", "Restart", "DPM++ 2S a", "Euler Karras Karras", "nonsense"])
def test_a_sampler_that_the_farm_lacks_is_refused(name: str) -> None:
    with pytest.raises(SamplerNotFound, match="Sampler not found"):
        txt2img(sampler_name=name)


def test_every_listed_sampler_is_found_by_its_label_and_aliases() -> None:
    assert set(names.ALIASES) == set(Sampler)
    for sampler, aliases in names.ALIASES.items():
        for name in (SAMPLER_LABELS[sampler], *aliases):
            assert names.walk(name, None)[0] is sampler


@pytest.mark.parametrize(
    "wanted", ["farm-demo", "farm-demo.safetensors", "FARM-DEMO.safetensors [0123456789]", "farm-demo [01234567]"]
)
def test_a_checkpoint_by_title_name_or_stem(wanted: str) -> None:
    (one,) = txt2img(override_settings={"sd_model_checkpoint": wanted}).submissions
    assert one.checkpoint == "farm-demo"


def test_an_unknown_checkpoint_is_never_another() -> None:
    with pytest.raises(Impossible, match="model 'nope' not found"):
        txt2img(override_settings={"sd_model_checkpoint": "nope"})


@pytest.mark.parametrize("wanted", ["Broken", "broken.safetensors", "Broken.safetensors [0123456789]"])
def test_a_checkpoint_that_no_worker_can_load_is_refused_with_the_reason(wanted: str) -> None:
    said = re.escape(f"model {wanted!r} cannot be loaded: Broken.safetensors: truncated.")
    for fields in ({"override_settings": {"sd_model_checkpoint": wanted}}, {"hr_checkpoint_name": wanted}):
        with pytest.raises(Impossible, match=said):
            txt2img(enable_hr=True, **fields)
    with pytest.raises(Impossible, match=said):
        options.changes({"sd_model_checkpoint": wanted}, FARM.checkpoints)


def test_where_nothing_can_be_loaded_it_is_said_where_the_reasons_stand() -> None:
    with pytest.raises(Impossible, match="no model can be loaded; GET /v1/checkpoints says why"):
        names.checkpoint("", replace(FARM.checkpoints, sha256s={}))


@pytest.mark.parametrize("wanted", ["other [0123456789]", "0123456789", "01234567", "other.safetensors [ffffffff]"])
def test_a_checkpoint_by_its_hash(wanted: str) -> None:
    (one,) = txt2img(override_settings={"sd_model_checkpoint": wanted}).submissions
    assert one.checkpoint == "other"
    with pytest.raises(Impossible):
        txt2img(override_settings={"sd_model_checkpoint": "other [ffffffffff]"})


def test_a_name_as_it_is_written_goes_before_others_and_before_hashes() -> None:
    known = {"A": "cafe0123" + "1" * 56, "a": None, "cafe0123": None, "v1.5": None, "v1.5.safetensors": None}
    for wanted in ("A", "a", "cafe0123", "v1.5"):
        assert names.checkpoint(wanted, KnownCheckpoints(known)) == wanted
        assert names.checkpoint(names.title(wanted, known[wanted]), KnownCheckpoints(known)) == wanted
    assert names.checkpoint("cafe01231", KnownCheckpoints(known)) == "A"


def test_seeds_count_over_batches_and_iterations() -> None:
    plan = txt2img(seed=5, batch_size=2, n_iter=3)
    assert [(one.seed, one.num_images) for one in plan.submissions] == [(5, 2), (7, 2), (9, 2)]


def test_with_a_variation_the_subseed_counts_instead() -> None:
    plan = txt2img(seed=5, subseed=9, subseed_strength=0.5, n_iter=2)
    assert [(one.seed, one.variation and one.variation.seed) for one in plan.submissions] == [(5, 9), (5, 10)]


def test_a_batch_larger_than_a_job_becomes_several() -> None:
    plan = txt2img(seed=0, batch_size=20)
    assert [(one.seed, one.num_images) for one in plan.submissions] == [(0, 16), (16, 4)]


def test_hires_fix_by_scale_or_side() -> None:
    def size(**fields: Any) -> tuple[int | None, int | None]:
        (one,) = txt2img(enable_hr=True, width=512, height=768, **fields).submissions
        assert one.hires
        return one.hires.width, one.hires.height

    assert size() == (1024, 1536)
    assert size(hr_scale=1.5) == (768, 1152)
    assert size(hr_resize_x=768) == (768, 1152)
    assert size(hr_resize_y=1152) == (768, 1152)
    assert size(hr_resize_x=640, hr_resize_y=960, hr_scale=4) == (640, 960)


def test_a_second_pass_of_another_shape_is_not_cropped_and_says_so() -> None:
    assert txt2img(enable_hr=True, hr_resize_x=1024, hr_resize_y=768).ignored == ("hr_resize crop",)
    assert txt2img(enable_hr=True, hr_resize_x=1024, hr_resize_y=1024).ignored == ()


def test_hires_fix_takes_over_what_it_does_not_say() -> None:
    (one,) = txt2img(enable_hr=True, denoising_strength=None, steps=20).submissions
    assert one.hires
    assert (one.hires.strength, one.hires.steps, one.hires.upscaler) == (0.75, None, Upscaler.LATENT)
    (other,) = txt2img(
        enable_hr=True, hr_second_pass_steps=10, hr_upscaler="Lanczos", hr_sampler_name="Euler a", hr_prompt="x"
    ).submissions
    assert other.hires
    assert (other.hires.steps, other.hires.upscaler, other.hires.sampler) == (10, Upscaler.LANCZOS, Sampler.EULER_A)
    assert other.hires.prompt == "x"


@pytest.mark.parametrize("same", [None, "", "Use same checkpoint", "None"])
def test_a_second_pass_without_a_checkpoint_has_that_of_the_first(same: str | None) -> None:
    (one,) = txt2img(enable_hr=True, hr_checkpoint_name=same).submissions
    assert one.hires
    assert one.hires.checkpoint is None


@pytest.mark.parametrize("name", ["other", "Other.safetensors", "other [0123456789]", "0123456789"])
def test_a_second_pass_has_the_checkpoint_of_its_name(name: str) -> None:
    plan = txt2img(enable_hr=True, hr_checkpoint_name=name)
    (one,) = plan.submissions
    assert one.hires
    assert (one.checkpoint, one.hires.checkpoint) == ("farm-demo", "other")
    assert plan.about["hires_checkpoint_hash"] == "0123456789"


def test_a_second_pass_of_an_unknown_checkpoint_is_refused_where_there_is_one() -> None:
    assert txt2img(hr_checkpoint_name="nobodys").submissions
    with pytest.raises(Impossible, match="model 'nobodys' not found"):
        txt2img(enable_hr=True, hr_checkpoint_name="nobodys")


def test_an_unknown_upscaler_matters_only_where_it_is_used() -> None:
    assert txt2img(hr_upscaler="ESRGAN_4x").submissions
    with pytest.raises(Impossible, match="could not find upscaler named ESRGAN_4x"):
        txt2img(hr_upscaler="ESRGAN_4x", enable_hr=True)


def test_step_counts_are_the_originals() -> None:
    assert img2img_steps(20, 0.75) == 16
    assert hires_steps(20, 0.7)[1] == 20


def test_img2img_fields() -> None:
    (one,) = img2img(
        mask="aGk=",
        mask_blur=8,
        inpainting_fill=2,
        inpaint_full_res_padding=32,
        inpainting_mask_invert=1,
        resize_mode=2,
    ).submissions
    assert one.inpaint
    assert (one.strength, one.resize_mode) == (0.75, ResizeMode.FILL)
    assert one.inpaint.model_dump() == {
        "mask_blur": 8,
        "mask_fill": MaskFill.NOISE,
        "mask_invert": True,
        "only_masked": True,
        "padding": 32,
    }


def test_several_init_images_are_the_batch() -> None:
    plan = img2img(init_images=["YQ==", "Yg=="], batch_size=2, n_iter=2, seed=1)
    assert [(one.init_image, one.seed) for one in plan.submissions] == [
        ("YQ==", 1),
        ("Yg==", 2),
        ("YQ==", 3),
        ("Yg==", 4),
    ]
    with pytest.raises(Impossible, match="bad number of images passed"):
        img2img(init_images=["YQ==", "Yg=="])


def test_no_init_image() -> None:
    with pytest.raises(InitImageMissing, match="Init image not found"):
        img2img(init_images=None)


def test_styles_wrap_the_prompt_or_stand_behind_it() -> None:
    (one,) = txt2img(prompt="a cat", negative_prompt="dog", styles=["warm", "plain", "unknown"]).submissions
    assert (one.prompt, one.negative_prompt) == ("warm a cat, soft, flat", "dog, cold")
    assert styles.applied("", ["flat"]) == "flat"


def test_scripts() -> None:
    with pytest.raises(ScriptNotFound, match="Script 'xyz' not found"):
        txt2img(script_name="xyz")
    with pytest.raises(ScriptNotFound, match="always on script ControlNet not found"):
        txt2img(alwayson_scripts={"ControlNet": {"args": [{"enabled": True}]}})
    idle = {
        "ADetailer": {"args": [False]},
        "x": {"args": []},
        "y": {"args": [{"enabled": False, "model": "m"}]},
        "z": {},
    }
    assert txt2img(alwayson_scripts=idle, script_args=["outpainting mk2"]).submissions


def test_what_is_ignored_is_named() -> None:
    assert txt2img(override_settings={"CLIP_stop_at_last_layers": 2.0, "ddim_discretize": "uniform"}).ignored == ()
    plan = txt2img(tiling=True, scheduler="polyexponential", override_settings={"forge_inference_memory": 1})
    assert plan.ignored == ("tiling", "scheduler", "override_settings.forge_inference_memory")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"steps": 151}, "steps"),
        ({"width": 10_000, "height": 10_000}, "width"),
        ({"width": 8}, "width"),
        ({"cfg_scale": 99}, "cfg_scale"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 10**12}, "batch_size"),
        ({"batch_size": 9, "n_iter": 9}, "n_iter"),
        ({"seed": 2**32}, "seed"),
        ({"subseed": 2**40, "subseed_strength": 0.5}, "subseed"),
        ({"enable_hr": True, "denoising_strength": 7}, "denoising_strength"),
        ({"enable_hr": True, "hr_scale": 9}, "hr_scale"),
        ({"prompt": "x" * 10_001}, "prompt"),
        ({"prompt": "a\0b"}, "prompt"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 99}}, "CLIP_stop_at_last_layers"),
    ],
)
def test_limits_are_refused_under_the_clients_names(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestValidationError) as refused:
        txt2img(**fields)
    assert refused.value.errors()[0]["loc"] == ("body", named)


def test_an_infotext_fills_what_is_left_open() -> None:
    text = infotext.encode(params(seed=99, steps=12, sampler=Sampler.EULER_A, schedule=Schedule.KARRAS, clip_skip=2), 0)
    (one,) = txt2img(infotext=text, steps=3).submissions
    assert (one.prompt, one.seed, one.steps, one.sampler) == (
        "a red circle on a blue background",
        99,
        3,
        Sampler.EULER_A,
    )
    assert (one.schedule, one.width) == (Schedule.KARRAS, 64)


def test_a_text_is_read_back_as_it_was_written() -> None:
    hires = factories.hires(
        sampler=Sampler.DPMPP_2M,
        schedule=Schedule.KARRAS,
        prompt='a "quoted": prompt, with commas',
        negative_prompt="bad",
        checkpoint="other",
    )
    made = params(
        prompt="two\nlines", negative_prompt="bad, worse", hires=hires, variation=Variation(seed=3, strength=0.5)
    )
    parts = infotext_parser.parse(infotext.encode(made, 0, FARM.checkpoints.sha256s))
    assert (parts["Prompt"], parts["Negative prompt"]) == ("two\nlines", "bad, worse")
    assert (parts["Size-1"], parts["Size-2"], parts["Steps"]) == ("64", "64", "4")
    assert (parts["Hires prompt"], parts["Hires upscale"]) == ('a "quoted": prompt, with commas', "2.0")
    assert (parts["Variation seed"], parts["Denoising strength"], parts["Clip skip"]) == ("3", "0.6", "1")
    assert parts["Hires checkpoint"] == "other [0123456789]"


def test_a_text_without_parameters_is_all_prompt() -> None:
    assert infotext_parser.stated("a cat\nSteps: 20") == {"Prompt": "a cat\nSteps: 20", "Negative prompt": ""}


def test_the_order_of_the_text_is_the_originals() -> None:
    painting = Inpaint(mask_blur=4, mask_fill=MaskFill.FILL, mask_invert=True, only_masked=True, padding=32)
    made = params(
        kind="img2img", init_image="k", mask_image="m", inpaint=painting, strength=0.75, clip_skip=2, vae="soft"
    )
    assert infotext.encode(made, 0).splitlines()[-1] == (
        "Steps: 4, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.0, Seed: 1, Size: 64x64, Model: farm-demo, VAE: soft, "
        "Denoising strength: 0.75, Clip skip: 2, Mask mode: Inpaint not masked, Mask blur: 4, Inpaint area: Only masked, "
        "Masked area padding: 32, Masked content: fill, Version: v1.10.1"
    )


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["1", "12.5", "true"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(st.sampled_from(sorted({*Txt2Img.model_fields, *Img2Img.model_fields})), json_values, max_size=8)
)
def test_any_request_is_submitted_or_clearly_refused(fields: dict[str, Any]) -> None:
    kinds: list[tuple[Any, Any]] = [(Txt2Img, translate.txt2img), (Img2Img, translate.img2img)]
    for kind, translated in kinds:
        try:
            request = kind.model_validate(fields)
            plan = translated(request, FARM)
        except (ValidationError, RequestValidationError, FarmError):
            continue
        assert plan.submissions
        assert sum(one.num_images for one in plan.submissions) <= translate.MAX_CALL_IMAGES
        json.dumps([request.echo(), plan.about], allow_nan=False)
