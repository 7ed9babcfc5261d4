"""The text inside a PNG that tells how it was made: AUTOMATIC1111's `parameters` line format, which every SD tool reads."""

from shared.params import GenerationParams, Sampler, Schedule

_SAMPLER_LABELS = {Sampler.EULER_A: "Euler a", Sampler.DPMPP_2M: "DPM++ 2M"}
_SCHEDULE_LABELS = {Schedule.UNIFORM: "Uniform", Schedule.KARRAS: "Karras"}


def encode(params: GenerationParams, index: int) -> str:
    """Return the text for image `index` of a job."""
    lines = [params.prompt]
    if params.negative_prompt:
        lines.append(f"Negative prompt: {params.negative_prompt}")
    facts = {
        "Steps": params.steps,
        "Sampler": _SAMPLER_LABELS[params.sampler],
        "Schedule type": _SCHEDULE_LABELS[params.schedule],
        "CFG scale": f"{params.guidance_scale:g}",
        "Seed": params.seeds[index],
        "Size": f"{params.width}x{params.height}",
        "Model": params.checkpoint,
    }
    lines.append(", ".join(f"{name}: {value}" for name, value in facts.items()))
    return "\n".join(lines)
