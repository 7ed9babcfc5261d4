"""The text inside a PNG that tells how it was made: AUTOMATIC1111's `parameters` line format, which every SD tool reads."""

from typing import Any

from shared.params import GenerationParams, Hires, MaskFill, Upscaler
from shared.samplers import SAMPLER_LABELS, SCHEDULE_LABELS

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


def encode(params: GenerationParams, index: int) -> str:
    """Return the text for image `index` of a job."""
    lines = [params.prompt]
    if params.negative_prompt:
        lines.append(f"Negative prompt: {params.negative_prompt}")
    lines.append(", ".join(f"{name}: {value}" for name, value in _facts(params, index).items()))
    return "\n".join(lines)


def _facts(params: GenerationParams, index: int) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "Steps": params.steps,
        "Sampler": SAMPLER_LABELS[params.sampler],
        "Schedule type": SCHEDULE_LABELS[params.schedule],
        "CFG scale": f"{params.guidance_scale:g}",
        "Seed": params.seeds[index],
        "Size": f"{params.width}x{params.height}",
        "Model": params.checkpoint,
    }
    if params.vae:
        facts["VAE"] = params.vae
    if params.variation:
        facts["Variation seed"] = params.variation_seeds[index]
        facts["Variation seed strength"] = f"{params.variation.strength:g}"
    if params.strength is not None:
        facts["Denoising strength"] = f"{params.strength:g}"
    if params.clip_skip > 1:
        facts["Clip skip"] = params.clip_skip
    if params.inpaint and params.mask_image:
        facts["Mask blur"] = params.inpaint.mask_blur
        facts["Masked content"] = _MASK_FILL_LABELS[params.inpaint.mask_fill]
        if params.inpaint.only_masked:
            facts["Inpaint area"] = "Only masked"
            facts["Masked area padding"] = params.inpaint.padding
    return facts | (_hires_facts(params, params.hires) if params.hires else {})


def _hires_facts(params: GenerationParams, hires: Hires) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "Denoising strength": f"{hires.strength:g}",
        "Hires resize": f"{hires.width}x{hires.height}",
        "Hires steps": hires.steps,
        "Hires upscaler": _UPSCALER_LABELS[hires.upscaler],
    }
    if hires.sampler != params.sampler:
        facts["Hires sampler"] = SAMPLER_LABELS[hires.sampler]
    if hires.schedule != params.schedule:
        facts["Hires schedule type"] = SCHEDULE_LABELS[hires.schedule]
    if hires.prompt != params.prompt:
        facts["Hires prompt"] = _quoted(hires.prompt)
    if hires.negative_prompt != params.negative_prompt:
        facts["Hires negative prompt"] = _quoted(hires.negative_prompt)
    return facts


def _quoted(text: str) -> str:
    """Quote what would break the list of facts."""
    if not any(mark in text for mark in ",\n:"):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
