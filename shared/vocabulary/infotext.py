"""Infotext: the generation parameters inside a PNG, in AUTOMATIC1111's `parameters` format, which every SD tool reads."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from shared.vocabulary.params import GenerationParams, Hires, MaskFill, Upscaler
from shared.vocabulary.samplers import SAMPLER_LABELS, SCHEDULE_LABELS, SCHEDULES, Sampler, Schedule

_MASK_FILL_LABELS = {
    MaskFill.FILL: "fill",
    MaskFill.ORIGINAL: "original",
    MaskFill.NOISE: "latent noise",
    MaskFill.NOTHING: "latent nothing",
}
_UPSCALER_LABELS = {
    Upscaler.LATENT: "Latent",
    Upscaler.LATENT_ANTIALIASED: "Latent (antialiased)",
    Upscaler.LATENT_BICUBIC: "Latent (bicubic)",
    Upscaler.LATENT_BICUBIC_ANTIALIASED: "Latent (bicubic antialiased)",
    Upscaler.LATENT_NEAREST: "Latent (nearest)",
    Upscaler.LATENT_NEAREST_EXACT: "Latent (nearest-exact)",
    Upscaler.LANCZOS: "Lanczos",
}


# Whose rules the text, and what it tells of, follow: readers treat texts without a version as years old.
VERSION = "v1.10.1"
HASH_CHARS = 10

# SHA-256 of checkpoints by name, as far as they are known.
Digests = Mapping[str, str | None]
_UNKNOWN: Digests = MappingProxyType({})


def encode(params: GenerationParams, index: int, sha256s: Digests = _UNKNOWN) -> str:
    """Return the infotext of image `index` of a job."""
    lines = [params.prompt]
    if params.negative_prompt:
        lines.append(f"Negative prompt: {params.negative_prompt}")
    facts = {**_facts(params, index, sha256s), **extras(params, sha256s), "Version": VERSION}
    lines.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in facts.items()))
    return "\n".join(lines)


def extras(params: GenerationParams, sha256s: Digests = _UNKNOWN) -> dict[str, Any]:
    """Return the fields of hires fix and inpainting, which follow those of every picture."""
    facts: dict[str, Any] = _hires_facts(params, params.hires, sha256s) if params.hires else {}
    if params.inpaint and params.mask_image:
        painting = params.inpaint
        facts["Mask mode"] = "Inpaint not masked" if painting.mask_invert else None
        facts["Mask blur"] = painting.mask_blur
        facts["Inpaint area"] = "Only masked" if painting.only_masked else None
        facts["Masked area padding"] = painting.padding if painting.only_masked else None
        facts["Masked content"] = _MASK_FILL_LABELS[painting.mask_fill]
        if painting.mask_fill is MaskFill.ORIGINAL:
            del facts["Masked content"]
    return {name: value for name, value in facts.items() if value is not None}


def _facts(params: GenerationParams, index: int, sha256s: Digests) -> dict[str, Any]:
    sha256 = sha256s.get(params.checkpoint)
    strength = params.hires.strength if params.hires else params.strength
    facts = {
        "Steps": params.steps,
        "Sampler": SAMPLER_LABELS[params.sampler],
        "Schedule type": _schedule_label(params.sampler, params.schedule),
        "CFG scale": params.guidance_scale,
        "Seed": params.seeds[index],
        "Size": f"{params.width}x{params.height}",
        "Model hash": sha256[:HASH_CHARS] if sha256 else None,
        "Model": params.checkpoint,
        "VAE": params.vae,
        "Variation seed": params.variation_seeds[index] if params.variation else None,
        "Variation seed strength": params.variation.strength if params.variation else None,
        "Denoising strength": strength,
        "Clip skip": params.clip_skip if params.clip_skip > 1 else None,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _schedule_label(sampler: Sampler, schedule: Schedule) -> str:
    """Name a schedule; the plain one of a sampler that walks no other by default has no name of its own."""
    is_plain = schedule is Schedule.UNIFORM and SCHEDULES[sampler][0] is schedule
    return "Automatic" if is_plain else SCHEDULE_LABELS[schedule]


def _hires_facts(params: GenerationParams, hires: Hires, sha256s: Digests) -> dict[str, Any]:
    scale = hires.width / params.width
    is_even = scale == hires.height / params.height
    is_same_walk = (hires.sampler, hires.schedule) == (params.sampler, params.schedule)
    return {
        "Hires checkpoint": _checkpoint_label(hires.checkpoint, sha256s) if hires.checkpoint else None,
        "Hires prompt": hires.prompt if hires.prompt != params.prompt else None,
        "Hires negative prompt": hires.negative_prompt if hires.negative_prompt != params.negative_prompt else None,
        "Hires schedule type": None if is_same_walk else _schedule_label(hires.sampler, hires.schedule),
        "Hires upscale": round(scale, 4) if is_even else None,
        "Hires resize": None if is_even else f"{hires.width}x{hires.height}",
        "Hires steps": hires.steps if hires.steps != params.steps else None,
        "Hires upscaler": _UPSCALER_LABELS[hires.upscaler],
        "Hires sampler": SAMPLER_LABELS[hires.sampler] if hires.sampler != params.sampler else None,
    }


def _checkpoint_label(name: str, sha256s: Digests) -> str:
    sha256 = sha256s.get(name)
    return f"{name} [{sha256[:HASH_CHARS]}]" if sha256 else name


def _quoted(text: str) -> str:
    """Quote what would break the list of facts."""
    if not any(mark in text for mark in ",\n:"):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
