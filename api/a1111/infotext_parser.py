"""Parse infotexts (A1111's generation parameters) into their parts and into the fields of a request."""

import json
import re
from typing import Any, TypeVar

from pydantic import ValidationError

from api.a1111.requests import Img2Img, Txt2Img
from shared.errors import InvalidRequest

# Fewer pairs than these are no line of parameters but a part of the prompt.
FEWEST_PAIRS = 3
MAX_CHARS = 100_000
NEGATIVE = "Negative prompt:"
_PAIR = re.compile(r'\s*(\w[\w \-/]{1,60}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")
# Defaults that A1111 adds for parts that an infotext leaves out.
_DEFAULTS = {
    "Clip skip": "1",
    "Hires resize-1": 0,
    "Hires resize-2": 0,
    "Hires sampler": "Use same sampler",
    "Hires schedule type": "Use same scheduler",
    "Hires checkpoint": "Use same checkpoint",
    "Hires prompt": "",
    "Hires negative prompt": "",
    "Mask mode": "Inpaint masked",
    "Masked content": "original",
    "Inpaint area": "Whole picture",
    "Masked area padding": 32,
    "RNG": "GPU",
    "Schedule type": "Automatic",
    "Schedule max sigma": 0,
    "Schedule min sigma": 0,
    "Schedule rho": 0,
    "VAE Encoder": "Full",
    "VAE Decoder": "Full",
    "FP8 weight": "Disable",
    "Cache FP16 weight for LoRA": False,
    "Emphasis": "Original",
    "Refiner switch by sampling steps": False,
}
_FIELDS = {
    "Prompt": "prompt",
    "Negative prompt": "negative_prompt",
    "Steps": "steps",
    "Sampler": "sampler_name",
    "Schedule type": "scheduler",
    "CFG scale": "cfg_scale",
    "Seed": "seed",
    "Size-1": "width",
    "Size-2": "height",
    "Variation seed": "subseed",
    "Variation seed strength": "subseed_strength",
    "Denoising strength": "denoising_strength",
    "Hires upscale": "hr_scale",
    "Hires steps": "hr_second_pass_steps",
    "Hires upscaler": "hr_upscaler",
    "Hires sampler": "hr_sampler_name",
    "Hires schedule type": "hr_scheduler",
    "Hires checkpoint": "hr_checkpoint_name",
    "Hires resize-1": "hr_resize_x",
    "Hires resize-2": "hr_resize_y",
    "Hires prompt": "hr_prompt",
    "Hires negative prompt": "hr_negative_prompt",
    "Mask blur": "mask_blur",
}

R = TypeVar("R", Txt2Img, Img2Img)


def parse(text: str) -> dict[str, Any]:
    """Return the parts of an infotext by name, prompts included, with A1111's defaults for missing ones."""
    return {**_DEFAULTS, **stated(text)}


def stated(text: str) -> dict[str, str]:
    """Return only the parts that an infotext contains. Sizes are split into `NAME-1` and `NAME-2`."""
    lines = text[:MAX_CHARS].strip().split("\n")
    pairs = _PAIR.findall(lines[-1])
    if len(pairs) < FEWEST_PAIRS:
        pairs = []
    else:
        lines.pop()
    prompt, negative = _prompts(lines)
    parts = {"Prompt": prompt, "Negative prompt": negative}
    for name, value in pairs:
        parts |= _part(name, _unquoted(value))
    return parts


def filled(request: R) -> R:
    """Fill the unset fields of a request from its `infotext`. Raises `InvalidRequest`."""
    if not request.infotext:
        return request
    parsed = {_FIELDS[name]: value for name, value in stated(request.infotext).items() if name in _FIELDS}
    given = request.model_fields_set
    fields = {name: value for name, value in parsed.items() if name not in given and name in type(request).model_fields}
    if "hr_upscaler" in fields and "enable_hr" not in given:
        fields["enable_hr"] = "true"
    try:
        return type(request).model_validate({**fields, **request.model_dump(include=given)})
    except ValidationError as error:
        raise InvalidRequest("infotext: contains values that a request may not have.") from error


def _prompts(lines: list[str]) -> tuple[str, str]:
    prompt: list[str] = []
    negative: list[str] = []
    current = prompt
    for line in lines:
        stripped = line.strip()
        if stripped.startswith(NEGATIVE):
            current, stripped = negative, stripped.removeprefix(NEGATIVE).strip()
        current.append(stripped)
    return "\n".join(prompt).strip(), "\n".join(negative).strip()


def _part(name: str, value: str) -> dict[str, str]:
    size = _SIZE.fullmatch(value)
    return {f"{name}-1": size[1], f"{name}-2": size[2]} if size else {name: value}


def _unquoted(value: str) -> str:
    value = value.strip()
    if not (value.startswith('"') and value.endswith('"')):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value
