"""Values that tests start from."""

from typing import Any

from shared.vocabulary.params import GenerationParams
from shared.vocabulary.samplers import Sampler, Schedule

DEMO = "farm-demo"


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
