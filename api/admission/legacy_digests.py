"""Digests of submissions as releases before schema 0019 made them: of every field they knew, defaults included.

They are stored beside those of `api.admission.sent` while processes of such a release may run, and compared with stored ones.
Once none runs they need not be stored. This module, `Digests.legacy` and the columns `digest` can go when nothing is left to
compare: `SELECT count(*) FROM jobs WHERE digest IS NOT NULL AND sent_digest IS NULL` is 0, and the 48 hours of keys are over.
"""

import hashlib
from typing import Any

from pydantic import BaseModel

from api.admission.submissions import Submission
from api.admission.sweeps import BatchSubmission

# Lists that nothing is added to: what later releases know was in no digest.
_FLAT = (
    *("prompt", "negative_prompt", "steps", "guidance_scale", "width", "height", "seed", "num_images", "priority"),
    *("sampler", "schedule", "checkpoint", "vae", "clip_skip", "init_image", "resize_mode", "strength", "mask_image"),
    *("expires_in", "timeout", "upscale"),
)
_JOB: dict[str, Any] = {
    **dict.fromkeys(_FLAT, True),
    "variation": {"seed", "strength"},
    "loras": {"__all__": {"name", "weight", "text_encoder_weight"}},
    "inpaint": {"mask_blur", "mask_fill", "mask_invert", "only_masked", "padding"},
    "hires": {
        *("scale", "width", "height", "upscaler", "steps", "strength"),
        *("guidance_scale", "sampler", "schedule", "prompt", "negative_prompt"),
    },
    "webhook": {"url", "events", "secret"},
}
_BATCH: dict[str, Any] = {
    **dict.fromkeys(("name", "template", "grid", "zip"), True),
    "jobs": {"__all__": _JOB},
    "webhook": {"url", "secret"},
}


def of_job(submission: Submission) -> str:
    """Return the digest of a job's body, in hex; "" for a body that such a release would have refused."""
    return _digest(submission, _JOB)


def of_batch(wanted: BatchSubmission) -> str:
    """Return the digest of a batch's body; as `of_job`."""
    return _digest(wanted, _BATCH)


def _digest(body: BaseModel, known: dict[str, Any]) -> str:
    if body.model_dump(exclude_unset=True, include=known) != body.model_dump(exclude_unset=True):
        return ""
    return hashlib.sha256(body.model_dump_json(include=known).encode()).hexdigest()
