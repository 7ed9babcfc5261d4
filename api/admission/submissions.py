"""Schema of a submission: types, bounds, and rules between fields. Names are looked up in `api.admission.resolution`."""

from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator, model_validator

from shared.infra.url_guard import MAX_URL_CHARS
from shared.jobs.outbox import ENDINGS, EventType
from shared.vocabulary.params import (
    MAX_BLUR_PX,
    MAX_CLIP_SKIP,
    MAX_GUIDANCE_SCALE,
    MAX_IMAGES,
    MAX_LORA_WEIGHT,
    MAX_LORAS,
    MAX_PADDING_PX,
    MAX_PRIORITY,
    MAX_SEED,
    MAX_SIDE_PX,
    MAX_STEPS,
    MAX_UPSCALE,
    MIN_PRIORITY,
    MIN_SIDE_PX,
    SIDE_MULTIPLE_PX,
    MaskFill,
    Prompt,
    ResizeMode,
    Upscaler,
    reject_nul,
)
from shared.vocabulary.samplers import Sampler, Schedule, check_schedule

# Strict: a client that sends "20" or true for a number has a bug, and guessing would hide it.
Side = Annotated[int, Field(strict=True, ge=MIN_SIDE_PX, le=MAX_SIDE_PX, multiple_of=SIDE_MULTIPLE_PX)]
Steps = Annotated[int, Field(strict=True, ge=1, le=MAX_STEPS)]
Seed = Annotated[int, Field(strict=True, ge=-1, le=MAX_SEED)]
Text = Annotated[Prompt, Field(strict=True)]
Name = Annotated[str, Field(strict=True, min_length=1, max_length=100)]
Guidance = Annotated[float, Field(strict=True, ge=0, le=MAX_GUIDANCE_SCALE, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Weight = Annotated[float, Field(strict=True, ge=-MAX_LORA_WEIGHT, le=MAX_LORA_WEIGHT, allow_inf_nan=False)]
Picture = Annotated[
    str,
    Field(
        strict=True,
        min_length=1,
        description="The file's bytes in base64, a data URI, an http(s) URL, the id of an upload, or the path of a job's input.",
    ),
]
# "automatic", A1111's word, is the sampler's own default, as is null.
ScheduleChoice = Annotated[Schedule | None, BeforeValidator(lambda name: None if name == "automatic" else name)]

MAX_WAIT_S = 30 * 24 * 3600


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LoraChoice(_Strict):
    """A LoRA to apply, as `<lora:name:weight>` in the prompt does."""

    name: Annotated[Name, Field(description="A name or alias from /v1/loras.")]
    weight: Annotated[Weight, Field(description="Weight for the UNet.")] = 1.0
    text_encoder_weight: Annotated[
        Weight | None, Field(description="Weight for the text encoder; null uses `weight`.")
    ] = None

    _no_nul = field_validator("name")(reject_nul)


class VariationChoice(_Strict):
    """Variation seed: blends the noise of a second seed into that of `seed`."""

    seed: Annotated[Seed | None, Field(description="-1 or null for a random seed.")] = None
    strength: Annotated[Share, Field(description="0 is the image of `seed`, 1 that of the variation seed.")]


class HiresChoice(_Strict):
    """Hires fix: render at the size of the job, upscale, then run img2img on the result. Null fields are as in the first pass."""

    scale: Annotated[
        float, Field(strict=True, gt=1, le=MAX_UPSCALE, allow_inf_nan=False, description="Upscale factor.")
    ] = 2.0
    width: Annotated[Side | None, Field(description="Final width in pixels; with `height`, instead of `scale`.")] = None
    height: Annotated[Side | None, Field(description="Final height in pixels.")] = None
    upscaler: Annotated[Upscaler, Field(description="Latent upscalers work on latents, `lanczos` on pixels.")] = (
        Upscaler.LATENT
    )
    steps: Annotated[
        Steps | None, Field(description="Steps of the second pass; the strength does not reduce them.")
    ] = None
    strength: Annotated[
        Share, Field(gt=0, description="Denoising strength of the second pass; latent upscalers need at least 0.5.")
    ] = 0.7
    guidance_scale: Guidance | None = None
    sampler: Sampler | None = None
    schedule: ScheduleChoice = None
    checkpoint: Annotated[
        Name | None, Field(description="A name from /v1/checkpoints; a worker has to be able to load it and the job's.")
    ] = None
    prompt: Text | None = None
    negative_prompt: Text | None = None

    _no_nul = field_validator("checkpoint", "prompt", "negative_prompt")(
        lambda text: text if text is None else reject_nul(text)
    )

    @model_validator(mode="after")
    def _size_is_whole(self) -> Self:
        if (self.width is None) != (self.height is None):
            raise ValueError("give both width and height, or scale")
        return self


class InpaintChoice(_Strict):
    """Inpainting of the white area of the mask. Lengths are in pixels of the init image."""

    mask_blur: Annotated[int, Field(strict=True, ge=0, le=MAX_BLUR_PX, description="Blur of the mask's edge.")] = 4
    mask_fill: Annotated[MaskFill, Field(description="What fills the masked area before denoising.")] = (
        MaskFill.ORIGINAL
    )
    mask_invert: Annotated[bool, Field(strict=True, description="Inpaint the black area instead.")] = False
    only_masked: Annotated[
        bool,
        Field(
            strict=True,
            description="Inpaint only the masked area, cropped with its `padding` and rendered at full resolution.",
        ),
    ] = False
    padding: Annotated[
        int,
        Field(strict=True, ge=0, le=MAX_PADDING_PX, description="Context around the masked area, for `only_masked`."),
    ] = 32


class WebhookChoice(_Strict):
    """A webhook endpoint (Standard Webhooks)."""

    url: Annotated[str, Field(strict=True, min_length=1, max_length=MAX_URL_CHARS, description="http or https.")]
    events: Annotated[
        list[EventType],
        Field(min_length=1, max_length=len(EventType), description="Events to send; by default the ends of jobs."),
    ] = list(ENDINGS)
    secret: Annotated[
        SecretStr | None,
        Field(
            max_length=200,
            description="`whsec_…`. Null: generated for an endpoint, that of /v1/webhooks/secret for a job.",
        ),
    ] = None


class Submission(_Strict):
    """A job to render. Only `prompt` is required."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "a red circle on a blue background", "width": 256, "height": 256},
                {
                    "prompt": "a (lighthouse:1.2) at dawn, oil painting",
                    "negative_prompt": "blurry",
                    "steps": 30,
                    "guidance_scale": 7.5,
                    "sampler": "dpmpp_2m",
                    "schedule": "karras",
                    "seed": 42,
                    "num_images": 4,
                    "hires": {"scale": 1.5, "strength": 0.6},
                },
                {
                    "prompt": "a green square on a blue background",
                    "init_image": "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNgYPgPAAEDAQAIicLsAAAAAElFTkSuQmCC",
                    "width": 256,
                    "height": 256,
                    "strength": 0.8,
                },
            ]
        },
    )

    prompt: Annotated[
        Text,
        Field(
            description="Prompt in AUTOMATIC1111's syntax: weights, `BREAK`, `AND`, prompt editing, `<lora:name:weight>`."
        ),
    ]
    negative_prompt: Annotated[Text, Field(description="Negative prompt.")] = ""
    steps: Annotated[Steps, Field(description="Denoising steps.")] = 20
    guidance_scale: Annotated[
        Guidance,
        Field(description="CFG scale; at 1 or below the negative prompt has no effect."),
    ] = 7.0
    width: Annotated[
        Side | None, Field(description="Pixels, a multiple of 8. Null: that of the init image, else 512.")
    ] = None
    height: Annotated[Side | None, Field(description="As `width`.")] = None
    seed: Annotated[
        Seed | None,
        Field(description="Seed of the first image; image n uses seed + n. -1 or null for a random seed."),
    ] = None
    num_images: Annotated[int, Field(strict=True, ge=1, le=MAX_IMAGES, description="Images of this job.")] = 1
    priority: Annotated[
        int,
        Field(strict=True, ge=MIN_PRIORITY, le=MAX_PRIORITY, description="Higher starts first; the API key limits it."),
    ] = 0
    variation: VariationChoice | None = None
    sampler: Sampler = Sampler.DPMPP_2M
    schedule: Annotated[ScheduleChoice, Field(description="Null or `automatic`: the sampler's default.")] = None
    checkpoint: Annotated[
        Name | None, Field(description="A name from /v1/checkpoints. Null: the farm's default, or the only one served.")
    ] = None
    vae: Annotated[Name | None, Field(description="A name from /v1/vaes. Null: the VAE of the checkpoint.")] = None
    clip_skip: Annotated[
        int,
        Field(
            strict=True,
            ge=1,
            le=MAX_CLIP_SKIP,
            description="1 uses CLIP's last layer, 2 the layer before it, as in AUTOMATIC1111.",
        ),
    ] = 1
    loras: Annotated[list[LoraChoice], Field(max_length=MAX_LORAS)] = []
    init_image: Annotated[
        Picture | None,
        Field(
            description="Makes the job img2img: base64, a data URI, a URL, the id of an upload, or "
            "`/v1/jobs/{id}/inputs/init_image` of a job."
        ),
    ] = None
    resize_mode: Annotated[
        ResizeMode, Field(description="How an init image of another shape is fitted to width and height.")
    ] = ResizeMode.STRETCH
    strength: Annotated[
        Share | None,
        Field(description="Denoising strength of img2img: 0 keeps the init image, 1 replaces it. Null: 0.75."),
    ] = None
    mask_image: Annotated[
        Picture | None, Field(description="Makes the job inpainting: the white area is painted anew.")
    ] = None
    inpaint: InpaintChoice | None = None
    hires: HiresChoice | None = None
    expires_in: Annotated[
        int | None,
        Field(
            strict=True,
            ge=1,
            le=MAX_WAIT_S,
            description="Seconds after which a job that is still queued expires. Null: never.",
        ),
    ] = None
    timeout: Annotated[
        int | None,
        Field(
            strict=True, ge=1, le=MAX_WAIT_S, description="Seconds that one attempt may run. Null: the farm's default."
        ),
    ] = None
    webhook: Annotated[
        WebhookChoice | None, Field(description="A webhook for this job, in addition to the registered endpoints.")
    ] = None
    upscale: Annotated[
        float,
        Field(
            strict=True,
            ge=1,
            le=MAX_UPSCALE,
            allow_inf_nan=False,
            description="Enlarge the finished images by this factor, with Lanczos.",
        ),
    ] = 1.0

    _no_nul = field_validator("prompt", "negative_prompt", "checkpoint", "vae")(
        lambda text: text if text is None else reject_nul(text)
    )

    @model_validator(mode="after")
    def _webhook_hears_of_a_job(self) -> Self:
        if self.webhook and any(event.is_of_batch for event in self.webhook.events):
            raise ValueError(
                "webhook: a job cannot send batch events; give the batch a webhook, or register an endpoint"
            )
        return self

    @model_validator(mode="after")
    def _schedules_fit_samplers(self) -> Self:
        if self.schedule is not None:
            check_schedule(self.sampler, self.schedule)
        if self.hires and self.hires.schedule is not None:
            check_schedule(self.hires.sampler or self.sampler, self.hires.schedule)
        return self

    @model_validator(mode="after")
    def _parts_belong_together(self) -> Self:
        if self.init_image is None:
            for name in ("mask_image", "strength"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} needs an init_image")
        elif self.hires:
            raise ValueError("hires needs txt2img; with an init_image use upscale, or a second job")
        if self.inpaint and self.mask_image is None:
            raise ValueError("inpaint needs a mask_image")
        return self
