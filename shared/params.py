"""What one job renders, fully resolved: every default applied, the seed drawn, the checkpoint known.

The edge (`api.v1.jobs`) turns a request into `GenerationParams`; everything behind the edge trusts it. Nothing here touches a
database, a file or the network.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

MAX_SEED = 2**32 - 1
MIN_SIDE_PX, MAX_SIDE_PX, SIDE_MULTIPLE_PX = 64, 2048, 8
MAX_STEPS = 150
MAX_IMAGES = 16
MAX_PROMPT_CHARS = 10_000
MAX_GUIDANCE_SCALE = 50.0


class Sampler(StrEnum):
    """Rules that turn noise predictions into the next latents."""

    EULER_A = "euler_a"
    DPMPP_2M = "dpmpp_2m"


class Schedule(StrEnum):
    """Lists of noise levels (sigmas) that a sampler walks down."""

    UNIFORM = "uniform"
    KARRAS = "karras"


# The first schedule of a sampler is its default.
SCHEDULES: Mapping[Sampler, tuple[Schedule, ...]] = MappingProxyType(
    {
        Sampler.EULER_A: (Schedule.UNIFORM,),
        Sampler.DPMPP_2M: (Schedule.KARRAS, Schedule.UNIFORM),
    }
)

Prompt = Annotated[str, StringConstraints(max_length=MAX_PROMPT_CHARS)]
Side = Annotated[int, Field(ge=MIN_SIDE_PX, le=MAX_SIDE_PX, multiple_of=SIDE_MULTIPLE_PX)]


def reject_nul(text: str) -> str:
    """Refuse NUL characters: Postgres cannot store them and no prompt means them."""
    if "\0" in text:
        raise ValueError("must not contain NUL characters")
    return text


class GenerationParams(BaseModel):
    """Everything that decides the pixels of a job's images, with no default left open.

    Sizes are in pixels. `seed` is the first image's; image i uses `seeds[i]`. `init_image`, `mask_image` and `strength` are
    storage keys and the noise share of image-to-image jobs, None for txt2img.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["txt2img", "img2img"] = "txt2img"
    checkpoint: str
    prompt: Prompt
    negative_prompt: Prompt
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)]
    guidance_scale: Annotated[float, Field(ge=0, le=MAX_GUIDANCE_SCALE, allow_inf_nan=False)]
    width: Side
    height: Side
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]
    num_images: Annotated[int, Field(ge=1, le=MAX_IMAGES)]
    sampler: Sampler
    schedule: Schedule
    init_image: str | None = None
    mask_image: str | None = None
    strength: float | None = None

    _no_nul = field_validator("prompt", "negative_prompt")(reject_nul)

    @model_validator(mode="after")
    def _schedule_fits_sampler(self) -> "GenerationParams":
        check_schedule(self.sampler, self.schedule)
        return self

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each image, wrapping after the largest."""
        return tuple((self.seed + index) % (MAX_SEED + 1) for index in range(self.num_images))


def check_schedule(sampler: Sampler, schedule: Schedule) -> None:
    """Refuse a schedule that the sampler cannot walk, naming those it can."""
    possible = SCHEDULES[sampler]
    if schedule not in possible:
        raise ValueError(f"sampler {sampler} cannot use schedule {schedule}; possible: {', '.join(possible)}")
