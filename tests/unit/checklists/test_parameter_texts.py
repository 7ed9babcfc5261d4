"""A parameter of jobs in the text of PNGs and in the A1111 dialect: "How to add" in ARCHITECTURE.md."""

from typing import Any

import pytest

from api.a1111 import options, translate
from api.a1111.names import KnownCheckpoints
from api.a1111.requests import Img2Img, Txt2Img
from api.a1111.translate import FarmFacts, Translation
from api.admission.submissions import Submission
from shared.vocabulary import infotext
from shared.vocabulary.params import GenerationParams
from tests.support.factories import DEMO
from tests.support.parameters import Excuses, at, differs, fail_if_any, forgotten, jobs, leaves
from tests.unit.checklists.test_parameter import GlowingParams, GlowingSubmission, assert_glow

# Under these names changed jobs go by (`tests.support.parameters.changes`).
CHECKPOINTS = (DEMO, f"{DEMO}s", "other", "karras", "exponential", "euler")
FARM = FarmFacts(
    options={options.CHECKPOINT: DEMO}, checkpoints=KnownCheckpoints(dict.fromkeys(CHECKPOINTS)), styles={}, draw=int
)

OF_LORAS = tuple(f"{part}loras.{name}" for part in ("", "hires.") for name in ("name", "weight", "text_encoder_weight"))
UNTOLD: Excuses = {
    "kind": "a denoising strength says as much",
    "num_images": "the text is of one image",
    **dict.fromkeys(("init_image", "mask_image"), "a key of the storage, which means nothing elsewhere"),
    **dict.fromkeys(OF_LORAS, "as tags in the prompt, if at all"),
    **dict.fromkeys(
        ("resize_mode", "upscale", "hires.guidance_scale"), "A1111 has no word for it; the PNG's `farm` text tells it"
    ),
}
UNREAD: Excuses = {
    **UNTOLD,
    **dict.fromkeys(("checkpoint", "vae", "clip_skip"), "the request's own settings decide"),
    **dict.fromkeys(
        ("inpaint.mask_fill", "inpaint.mask_invert", "inpaint.only_masked", "inpaint.padding"),
        "a request says it by numbers, the text in words that vary with the version",
    ),
}


def untold(model: type[GenerationParams]) -> list[str]:
    given = jobs(model)
    place = "not told by the PNG's text; shared/vocabulary/infotext.py"
    return forgotten(model, lambda path: differs(given, path, lambda job: infotext.encode(job, 0)), place, UNTOLD)


def test_the_text_tells_of_every_parameter() -> None:
    fail_if_any(untold(GenerationParams))


def unread(model: type[GenerationParams]) -> list[str]:
    given = jobs(model)
    place = "told, but not read back; _FIELDS of api/a1111/infotext_parser.py"
    return forgotten(model, lambda path: differs(given, path, read), place, UNREAD)


def read(job: GenerationParams) -> tuple[Submission, ...]:
    """What the dialect makes of requests, of both kinds, that say no more than the text of a job's picture."""
    text = {"infotext": infotext.encode(job, 0)}
    pictures = {"init_images": ["aGk="], "mask": "aGk="}
    return (
        *translate.txt2img(Txt2Img.model_validate(text), FARM).submissions,
        *translate.img2img(Img2Img.model_validate({**pictures, **text}), FARM).submissions,
    )


def test_what_the_text_tells_is_read_back() -> None:
    fail_if_any(unread(GenerationParams))


# What each kind of request says anyway, and how it asks for each parameter.
KINDS: dict[str, dict[str, Any]] = {
    "txt2img": {},
    "hires": {"enable_hr": True},
    "img2img": {"init_images": ["aGk="], "mask": "aGk="},
}
ASKED: dict[str, dict[str, dict[str, Any]]] = {
    "txt2img": {
        "prompt": {"prompt": "a cat"},
        "negative_prompt": {"negative_prompt": "a dog"},
        "steps": {"steps": 21},
        "guidance_scale": {"cfg_scale": 4.5},
        "width": {"width": 640},
        "height": {"height": 768},
        "seed": {"seed": 5},
        "num_images": {"batch_size": 3},
        "variation.seed": {"subseed": 5, "subseed_strength": 0.5},
        "variation.strength": {"subseed_strength": 0.5},
        "sampler": {"sampler_name": "DPM++ 2M"},
        "schedule": {"scheduler": "karras"},
        "checkpoint": {"override_settings": {options.CHECKPOINT: "other"}},
        "vae": {"override_settings": {options.VAE: "other"}},
        "clip_skip": {"override_settings": {options.CLIP_SKIP: 2}},
    },
    "hires": {
        "hires.width": {"hr_scale": 1.5},
        "hires.height": {"hr_resize_y": 768},
        "hires.upscaler": {"hr_upscaler": "Lanczos"},
        "hires.steps": {"hr_second_pass_steps": 9},
        "hires.strength": {"denoising_strength": 0.4},
        "hires.sampler": {"hr_sampler_name": "DPM++ 2M"},
        "hires.schedule": {"hr_scheduler": "karras"},
        "hires.checkpoint": {"hr_checkpoint_name": "other"},
        "hires.prompt": {"hr_prompt": "a cat"},
        "hires.negative_prompt": {"hr_negative_prompt": "a dog"},
    },
    "img2img": {
        "init_image": {"init_images": ["b3RoZXI="]},
        "resize_mode": {"resize_mode": 1},
        "strength": {"denoising_strength": 0.4},
        "mask_image": {"mask": "b3RoZXI="},
        "inpaint.mask_blur": {"mask_blur": 9},
        "inpaint.mask_fill": {"inpainting_fill": 2},
        "inpaint.mask_invert": {"inpainting_mask_invert": 1},
        "inpaint.only_masked": {"inpaint_full_res": False},
        "inpaint.padding": {"inpaint_full_res_padding": 9},
    },
}
ASKABLE = {path for asked in ASKED.values() for path in asked}
BEYOND_A1111 = "A1111's API knows no such thing"
UNASKED: Excuses = {
    **dict.fromkeys(("loras.name", "loras.weight", "loras.text_encoder_weight"), "as tags in the prompt"),
    "hires.scale": "as the width and height that the translation makes of it",
    "hires.guidance_scale": "A1111 1.10 has one CFG scale for both passes",
    "upscale": "a call of its own there",
    **dict.fromkeys(("priority", "expires_in", "timeout"), BEYOND_A1111),
    **dict.fromkeys(("webhook.url", "webhook.events", "webhook.secret"), BEYOND_A1111),
}


def translated(kind: str, fields: dict[str, Any]) -> Translation:
    if kind == "img2img":
        return translate.img2img(Img2Img.model_validate(KINDS[kind] | fields), FARM)
    return translate.txt2img(Txt2Img.model_validate(KINDS[kind] | fields), FARM)


def unasked(model: type[Submission]) -> list[str]:
    place = (
        "no request of the A1111 dialect asks for it; translate it in api/a1111/translate.py and name its field here"
    )
    return forgotten(model, ASKABLE.__contains__, place, UNASKED)


def test_the_dialect_can_ask_for_every_parameter() -> None:
    fail_if_any(unasked(Submission))
    assert set(leaves(Submission)) >= ASKABLE


@pytest.mark.parametrize(("kind", "path"), [(kind, path) for kind, asked in ASKED.items() for path in asked])
def test_what_the_dialect_asks_for_is_submitted(kind: str, path: str) -> None:
    plain, asked = translated(kind, {}), translated(kind, ASKED[kind][path])
    assert asked.ignored == ()
    assert at(asked.submissions[0].model_dump(), path) != at(plain.submissions[0].model_dump(), path)


def test_a_forgotten_parameter_is_named_by_each_check() -> None:
    assert_glow(untold(GlowingParams), "not told by the PNG's text")
    assert_glow(unread(GlowingParams), "told, but not read back")
    assert_glow(unasked(GlowingSubmission), "no request of the A1111 dialect asks for it")
