"""Values that tests start from."""

import io
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from shared.vocabulary.params import GenerationParams, Hires, Upscaler
from shared.vocabulary.samplers import Sampler, Schedule

DEMO = "farm-demo"
# A small job as a client sends it.
BODY: dict[str, Any] = {"prompt": "a red circle on a blue background", "width": 64, "height": 64, "steps": 4}


def params(**changes: Any) -> GenerationParams:
    """A small, valid job; a test changes what it is about."""
    fields: dict[str, Any] = {
        "checkpoint": DEMO,
        "prompt": "a red circle on a blue background",
        "negative_prompt": "",
        "steps": 4,
        "guidance_scale": 7.0,
        "width": 64,
        "height": 64,
        "seed": 1,
        "num_images": 1,
        "sampler": Sampler.DPMPP_2M,
        "schedule": Schedule.KARRAS,
    }
    return GenerationParams(**{**fields, **changes})


def hires(**changes: Any) -> Hires:
    """A small, valid second pass; a test changes what it is about."""
    fields: dict[str, Any] = {
        "width": 128,
        "height": 128,
        "upscaler": Upscaler.LATENT,
        "steps": 3,
        "strength": 0.6,
        "guidance_scale": 7.0,
        "sampler": Sampler.EULER,
        "schedule": Schedule.UNIFORM,
        "prompt": "x",
        "negative_prompt": "",
    }
    return Hires(**{**fields, **changes})


def png(color: str, **texts: str) -> bytes:
    """A picture of one colour, 64 px square, with text chunks by keyword."""
    chunks = PngInfo()
    for keyword, text in texts.items():
        chunks.add_itxt(keyword, text)
    out = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(out, "PNG", pnginfo=chunks)
    return out.getvalue()
