"""Resolve a submission into `GenerationParams`: apply defaults, draw seeds, look up LoRAs."""

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from api.admission.submissions import HiresChoice, InpaintChoice, LoraChoice, Submission
from shared.errors import InvalidRequest
from shared.vocabulary import prompt_grammar
from shared.vocabulary.params import (
    MAX_LORA_WEIGHT,
    MAX_LORAS,
    MAX_SEED,
    MAX_SIDE_PX,
    MIN_SIDE_PX,
    SIDE_MULTIPLE_PX,
    GenerationParams,
    Hires,
    Inpaint,
    Lora,
    Variation,
)
from shared.vocabulary.samplers import SCHEDULES, Sampler, Schedule

DEFAULT_SIDE_PX = 512
DEFAULT_STRENGTH = 0.75

FindLora = Callable[[str], str]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoredInputs:
    """Storage keys of a submission's pictures, and the init image's size in pixels."""

    init_image: str | None = None
    init_size: tuple[int, int] | None = None
    mask_image: str | None = None


def resolve(
    submission: Submission,
    *,
    checkpoint: str,
    hires_checkpoint: str | None = None,
    vae: str | None = None,
    find_lora: FindLora = lambda name: name,
    inputs: StoredInputs | None = None,
) -> GenerationParams:
    """Apply defaults, draw seeds and resolve LoRAs. `find_lora` maps a name or alias to a name and raises for an unknown one."""
    inputs = inputs or StoredInputs()
    width, height = _size(submission, inputs.init_size)
    is_img2img = inputs.init_image is not None
    own_checkpoint = None if hires_checkpoint == checkpoint else hires_checkpoint
    painting = submission.inpaint or InpaintChoice()
    return GenerationParams(
        kind="img2img" if is_img2img else "txt2img",
        checkpoint=checkpoint,
        vae=vae,
        prompt=submission.prompt,
        negative_prompt=submission.negative_prompt,
        steps=submission.steps,
        guidance_scale=submission.guidance_scale,
        width=width,
        height=height,
        seed=drawn_seed(submission.seed),
        num_images=submission.num_images,
        variation=_variation(submission),
        sampler=submission.sampler,
        schedule=_schedule(submission.sampler, submission.schedule),
        clip_skip=submission.clip_skip,
        loras=_loras(submission.prompt, submission.loras, find_lora),
        init_image=inputs.init_image,
        resize_mode=submission.resize_mode,
        strength=_or(submission.strength, DEFAULT_STRENGTH) if is_img2img else None,
        mask_image=inputs.mask_image,
        inpaint=Inpaint(**painting.model_dump()) if inputs.mask_image else None,
        hires=_hires(submission, submission.hires, (width, height), own_checkpoint, find_lora)
        if submission.hires
        else None,
        upscale=submission.upscale,
    )


def _size(submission: Submission, init_size: tuple[int, int] | None) -> tuple[int, int]:
    """Return width and height in pixels; a missing side is that of the init image, rounded down and clamped."""
    width, height = init_size or (DEFAULT_SIDE_PX, DEFAULT_SIDE_PX)
    return _or(submission.width, _side(width)), _or(submission.height, _side(height))


def _side(pixels: float) -> int:
    whole = int(pixels) // SIDE_MULTIPLE_PX * SIDE_MULTIPLE_PX
    return min(max(whole, MIN_SIDE_PX), MAX_SIDE_PX)


def drawn_seed(seed: int | None) -> int:
    """Return the seed; draw one for None or a negative one."""
    return secrets.randbelow(MAX_SEED + 1) if seed is None or seed < 0 else seed


def _variation(submission: Submission) -> Variation | None:
    choice = submission.variation
    return Variation(seed=drawn_seed(choice.seed), strength=choice.strength) if choice else None


def _schedule(sampler: Sampler, choice: Schedule | None) -> Schedule:
    return SCHEDULES[sampler][0] if choice is None else choice


def _loras(text: str, choices: Iterable[LoraChoice], find: FindLora) -> tuple[Lora, ...]:
    """Merge the LoRAs of a prompt's tags and of the field. Weights of a LoRA that is named twice add up."""
    _, tags = prompt_grammar.split_loras(text)
    tagged = [(tag.name, tag.unet_weight, tag.text_weight) for tag in tags]
    tagged += [(one.name, one.weight, _or(one.text_encoder_weight, one.weight)) for one in choices]
    sums: dict[str, tuple[float, float]] = {}
    for name, weight, text_weight in tagged:
        resolved = find(name)
        before = sums.get(resolved, (0.0, 0.0))
        sums[resolved] = (before[0] + weight, before[1] + text_weight)
    for name, weights in sums.items():
        if not all(abs(weight) <= MAX_LORA_WEIGHT for weight in weights):
            raise InvalidRequest(
                f"LoRA {name}: the weight must be between {-MAX_LORA_WEIGHT:g} and {MAX_LORA_WEIGHT:g}."
            )
    if len(sums) > MAX_LORAS:
        raise InvalidRequest(f"The job uses {len(sums)} LoRAs; at most {MAX_LORAS} are allowed.")
    return tuple(Lora(name=name, weight=one, text_encoder_weight=other) for name, (one, other) in sums.items())


def _hires(
    submission: Submission, choice: HiresChoice, size: tuple[int, int], checkpoint: str | None, find: FindLora
) -> Hires:
    width, height = size
    sampler = choice.sampler or submission.sampler
    schedule = submission.schedule if choice.schedule is None and sampler == submission.sampler else choice.schedule
    text = _or(choice.prompt, submission.prompt)
    return Hires(
        width=_or(choice.width, _enlarged(width, choice.scale)),
        height=_or(choice.height, _enlarged(height, choice.scale)),
        upscaler=choice.upscaler,
        steps=_or(choice.steps, submission.steps),
        strength=choice.strength,
        guidance_scale=_or(choice.guidance_scale, submission.guidance_scale),
        sampler=sampler,
        schedule=_schedule(sampler, schedule),
        checkpoint=checkpoint,
        prompt=text,
        negative_prompt=_or(choice.negative_prompt, submission.negative_prompt),
        loras=_loras(text, submission.loras, find),
    )


def _enlarged(side: int, scale: float) -> int:
    whole = int(side * scale)
    if whole > MAX_SIDE_PX:
        raise InvalidRequest(f"hires: {side} px times {scale:g} is larger than the maximum of {MAX_SIDE_PX} px.")
    return _side(whole)


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
