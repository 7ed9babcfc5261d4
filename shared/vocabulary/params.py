"""Generation parameters of one job, fully resolved: every default applied, the seed drawn, the checkpoint chosen.

The api turns a request into `GenerationParams` (`api.admission.resolution`); all code behind it trusts them. Pure: no database,
no file, no network.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from shared.vocabulary.samplers import Sampler, Schedule, check_schedule, hires_steps, img2img_steps, unet_calls

MAX_SEED = 2**32 - 1
MIN_SIDE_PX, MAX_SIDE_PX, SIDE_MULTIPLE_PX = 64, 2048, 8
LATENT_PX = 8  # pixels of the picture to one of the latents, each way
MAX_STEPS = 150
MAX_IMAGES = 16
MAX_PROMPT_CHARS = 10_000
MAX_GUIDANCE_SCALE = 50.0
MAX_CLIP_SKIP = 12  # layers of SD1.5's text encoder
MAX_LORAS = 32
MAX_LORA_WEIGHT = 10.0
MAX_UPSCALE = 4.0
MAX_BLUR_PX, MAX_PADDING_PX = 64, 256
MIN_PRIORITY, MAX_PRIORITY = -10, 10


class ResizeMode(StrEnum):
    """How an init image of another size is fitted to the picture."""

    STRETCH = "stretch"
    CROP = "crop"
    FILL = "fill"


class MaskFill(StrEnum):
    """What fills the masked area before inpainting."""

    FILL = "fill"
    ORIGINAL = "original"
    NOISE = "noise"
    NOTHING = "nothing"


class Upscaler(StrEnum):
    """How hires fix enlarges its first pass: in latents, or as pixels by Lanczos."""

    LATENT = "latent"
    LATENT_ANTIALIASED = "latent_antialiased"
    LATENT_BICUBIC = "latent_bicubic"
    LATENT_BICUBIC_ANTIALIASED = "latent_bicubic_antialiased"
    LATENT_NEAREST = "latent_nearest"
    LATENT_NEAREST_EXACT = "latent_nearest_exact"
    LANCZOS = "lanczos"


Prompt = Annotated[str, StringConstraints(max_length=MAX_PROMPT_CHARS)]
Side = Annotated[int, Field(ge=MIN_SIDE_PX, le=MAX_SIDE_PX, multiple_of=SIDE_MULTIPLE_PX)]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Guidance = Annotated[float, Field(ge=0, le=MAX_GUIDANCE_SCALE, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
LoraWeight = Annotated[float, Field(ge=-MAX_LORA_WEIGHT, le=MAX_LORA_WEIGHT, allow_inf_nan=False)]


def reject_nul(text: str) -> str:
    """Refuse NUL characters: Postgres cannot store them and no prompt means them."""
    if "\0" in text:
        raise ValueError("must not contain NUL characters")
    return text


class _Resolved(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Lora(_Resolved):
    """A LoRA by name, with its weights on the UNet and on the text encoder."""

    name: str
    weight: LoraWeight
    text_encoder_weight: LoraWeight


class Variation(_Resolved):
    """Variation seed and strength: how far the start noise is turned towards that seed's noise (slerp)."""

    seed: Seed
    strength: Share


class Hires(_Resolved):
    """Hires fix: a second pass over the enlarged first one. It makes `steps` steps, whatever the strength.

    Without a `checkpoint` of its own it is rendered with the job's.
    """

    width: Side
    height: Side
    upscaler: Upscaler
    steps: Steps
    strength: Share
    guidance_scale: Guidance
    sampler: Sampler
    schedule: Schedule
    checkpoint: str | None = None
    prompt: Prompt
    negative_prompt: Prompt
    loras: tuple[Lora, ...] = ()

    @model_validator(mode="after")
    def _schedule_fits_sampler(self) -> "Hires":
        check_schedule(self.sampler, self.schedule)
        return self

    @property
    def schedule_steps(self) -> int:
        """The length of the schedule; only its `last_steps` are made."""
        return hires_steps(self.steps, self.strength)[0]

    @property
    def last_steps(self) -> int:
        """How many steps are made: `steps`, or fewer where so little noise would need too long a schedule."""
        return hires_steps(self.steps, self.strength)[1]


class Inpaint(_Resolved):
    """Inpainting: the white of the mask is painted anew. Lengths are in pixels of the init image."""

    mask_blur: Annotated[int, Field(ge=0, le=MAX_BLUR_PX)]
    mask_fill: MaskFill
    mask_invert: bool
    only_masked: bool
    padding: Annotated[int, Field(ge=0, le=MAX_PADDING_PX)]


class GenerationParams(_Resolved):
    """Everything that decides the pixels of a job's images, with no default left open.

    Sizes are in pixels. `seed` is the first image's; image i uses `seeds[i]`. Prompts stand as the client wrote them; the LoRAs
    that their tags name are in `loras`. `init_image` and `mask_image` are storage keys, None for txt2img, as is `strength`, the
    share of noise. The defaults are what jobs meant that were stored before a field existed.
    """

    kind: Literal["txt2img", "img2img"] = "txt2img"
    checkpoint: str
    vae: str | None = None
    prompt: Prompt
    negative_prompt: Prompt
    steps: Steps
    guidance_scale: Guidance
    width: Side
    height: Side
    seed: Seed
    num_images: Annotated[int, Field(ge=1, le=MAX_IMAGES)]
    variation: Variation | None = None
    sampler: Sampler
    schedule: Schedule
    clip_skip: Annotated[int, Field(ge=1, le=MAX_CLIP_SKIP)] = 1
    loras: Annotated[tuple[Lora, ...], Field(max_length=MAX_LORAS)] = ()
    init_image: str | None = None
    resize_mode: ResizeMode = ResizeMode.STRETCH
    strength: Share | None = None
    mask_image: str | None = None
    inpaint: Inpaint | None = None
    hires: Hires | None = None
    upscale: Annotated[float, Field(ge=1, le=MAX_UPSCALE, allow_inf_nan=False)] = 1.0

    _no_nul = field_validator("prompt", "negative_prompt")(reject_nul)

    @model_validator(mode="after")
    def _schedule_fits_sampler(self) -> "GenerationParams":
        check_schedule(self.sampler, self.schedule)
        return self

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each image, wrapping after the largest. All the same when a variation tells the images apart."""
        step = 0 if self.variation and self.variation.strength else 1
        return tuple((self.seed + step * index) % (MAX_SEED + 1) for index in range(self.num_images))

    @property
    def variation_seeds(self) -> tuple[int, ...]:
        """The variation seed of each image; 0 where there is no variation."""
        first = self.variation.seed if self.variation else 0
        return tuple((first + index) % (MAX_SEED + 1) if self.variation else 0 for index in range(self.num_images))

    @property
    def unet_calls(self) -> int:
        """How often the UNet is called for all images together: what progress counts."""
        calls = unet_calls(self.sampler, self.steps, last=self.last_steps)
        if self.hires:
            calls += unet_calls(self.hires.sampler, self.hires.schedule_steps, last=self.hires.last_steps)
        return calls * self.num_images

    @property
    def cost(self) -> int:
        """The work of the job: latent pixels through the UNet, over all calls, rows (guidance takes two) and images.

        The unit of speeds, shares and forecasts. Text encoder, VAE and upload are left out.
        """
        calls = unet_calls(self.sampler, self.steps, last=self.last_steps)
        total = calls * _call_cost(self.width, self.height, self.guidance_scale)
        if self.hires:
            second = self.hires
            calls = unet_calls(second.sampler, second.schedule_steps, last=second.last_steps)
            total += calls * _call_cost(second.width, second.height, second.guidance_scale)
        return total * self.num_images

    @property
    def last_steps(self) -> int | None:
        """How many of the last steps img2img makes; None for txt2img, which makes all."""
        return None if self.strength is None else img2img_steps(self.steps, self.strength)


def _call_cost(width: int, height: int, guidance_scale: float) -> int:
    rows = 2 if guidance_scale > 1 else 1
    return rows * (width // LATENT_PX) * (height // LATENT_PX)
