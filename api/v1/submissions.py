"""What a client may ask for, and how it becomes parameters in which nothing is left open."""

import secrets
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from shared.params import (
    MAX_GUIDANCE_SCALE,
    MAX_IMAGES,
    MAX_SEED,
    MAX_SIDE_PX,
    MAX_STEPS,
    MIN_SIDE_PX,
    SCHEDULES,
    SIDE_MULTIPLE_PX,
    GenerationParams,
    Prompt,
    Sampler,
    Schedule,
    check_schedule,
    reject_nul,
)

# Strict: a client that sends "20" or true for a number has a bug, and guessing would hide it.
Side = Annotated[int, Field(strict=True, ge=MIN_SIDE_PX, le=MAX_SIDE_PX, multiple_of=SIDE_MULTIPLE_PX)]


class Submission(BaseModel):
    """A job to render. Only `prompt` is required."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"prompt": "a red circle on a blue background", "width": 256, "height": 256},
                {
                    "prompt": "a lighthouse at dawn, oil painting",
                    "negative_prompt": "blurry",
                    "steps": 30,
                    "guidance_scale": 7.5,
                    "sampler": "dpmpp_2m",
                    "schedule": "karras",
                    "seed": 42,
                    "num_images": 4,
                },
            ]
        },
    )

    prompt: Annotated[Prompt, Field(strict=True, description="What the picture should show.")]
    negative_prompt: Annotated[Prompt, Field(strict=True, description="What it should not show.")] = ""
    steps: Annotated[int, Field(strict=True, ge=1, le=MAX_STEPS, description="Denoising steps.")] = 20
    guidance_scale: Annotated[
        float,
        Field(
            strict=True,
            ge=0,
            le=MAX_GUIDANCE_SCALE,
            allow_inf_nan=False,
            description="How strongly the prompt is followed; at 1 or below the negative prompt has no effect.",
        ),
    ] = 7.0
    width: Annotated[Side, Field(description="In pixels, a multiple of 8.")] = 512
    height: Annotated[Side, Field(description="In pixels, a multiple of 8.")] = 512
    seed: Annotated[
        int | None,
        Field(
            strict=True,
            ge=-1,
            le=MAX_SEED,
            description="Of the first image; the next use seed + 1 and so on. -1 or null draws one.",
        ),
    ] = None
    num_images: Annotated[int, Field(strict=True, ge=1, le=MAX_IMAGES)] = 1
    sampler: Sampler = Sampler.DPMPP_2M
    schedule: Annotated[Schedule | None, Field(description="Null takes the sampler's own default.")] = None
    checkpoint: Annotated[
        str | None,
        Field(
            strict=True, max_length=100, description="A name from /v1/checkpoints. Null takes the one that is served."
        ),
    ] = None

    _no_nul = field_validator("prompt", "negative_prompt", "checkpoint")(
        lambda text: text if text is None else reject_nul(text)
    )

    @model_validator(mode="after")
    def _schedule_fits_sampler(self) -> "Submission":
        if self.schedule is not None:
            check_schedule(self.sampler, self.schedule)
        return self


def resolve(submission: Submission, *, checkpoint: str) -> GenerationParams:
    """Apply every default and draw the seed."""
    seed = submission.seed
    return GenerationParams(
        checkpoint=checkpoint,
        prompt=submission.prompt,
        negative_prompt=submission.negative_prompt,
        steps=submission.steps,
        guidance_scale=submission.guidance_scale,
        width=submission.width,
        height=submission.height,
        seed=secrets.randbelow(MAX_SEED + 1) if seed is None or seed < 0 else seed,
        num_images=submission.num_images,
        sampler=submission.sampler,
        schedule=submission.schedule or SCHEDULES[submission.sampler][0],
    )
