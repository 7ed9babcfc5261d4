"""Translate A1111 requests into submissions. Pure: the farm's state comes in as `FarmFacts`.

A call becomes one job per iteration (`n_iter`), or more where a job cannot hold so many images. Image `i` of a call has the seed
`seed + i`, whatever job it falls into.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from api.a1111 import ignored_fields, infotext_parser, names, options, styles
from api.a1111.errors import Impossible, InitImageMissing, ScriptNotFound
from api.a1111.requests import Img2Img, PictureRequest, Txt2Img
from api.a1111.styles import Style
from api.admission.submissions import Submission
from shared.vocabulary.params import MAX_IMAGES, MAX_SEED, SIDE_MULTIPLE_PX, MaskFill, ResizeMode
from shared.vocabulary.prompt_grammar import split_loras

MAX_CALL_IMAGES = 64
DEFAULT_STRENGTH = 0.75
# What the original draws from.
LAST_DRAWN_SEED = 2**32 - 3
_FILLS = (MaskFill.FILL, MaskFill.ORIGINAL, MaskFill.NOISE, MaskFill.NOTHING)
_RESIZES = (ResizeMode.STRETCH, ResizeMode.CROP, ResizeMode.FILL, ResizeMode.STRETCH)
_SAME = frozenset({"", "use same checkpoint", "use same sampler", "use same scheduler", "none"})

# A1111's names of the fields of a submission, for error messages.
_A1111_NAMES = {
    "guidance_scale": "cfg_scale",
    "num_images": "batch_size",
    "clip_skip": options.CLIP_SKIP,
    "strength": "denoising_strength",
    "vae": options.VAE,
    "init_image": "init_images",
    "mask_image": "mask",
    "variation.seed": "subseed",
    "variation.strength": "subseed_strength",
    "inpaint.mask_blur": "mask_blur",
    "inpaint.padding": "inpaint_full_res_padding",
    "hires.width": "hr_scale",
    "hires.height": "hr_scale",
    "hires.steps": "hr_second_pass_steps",
    "hires.strength": "denoising_strength",
    "hires.checkpoint": "hr_checkpoint_name",
    "hires.prompt": "hr_prompt",
    "hires.negative_prompt": "hr_negative_prompt",
}


@dataclass(frozen=True, slots=True)
class FarmFacts:
    """Inputs of a translation: the session's options, the farm's checkpoints and styles; `draw(n)` draws a seed from 0 to n."""

    options: Mapping[str, Any]
    checkpoints: names.KnownCheckpoints
    styles: Mapping[str, Style]
    draw: Callable[[int], int]


@dataclass(frozen=True, slots=True)
class Translation:
    """The jobs of a call in the order of its images, what the answer repeats (`about`), and the names of ignored parameters."""

    submissions: tuple[Submission, ...]
    about: dict[str, Any]
    ignored: tuple[str, ...]


def txt2img(request: Txt2Img, farm: FarmFacts) -> Translation:
    """Translate a txt2img request. Raises `RequestValidationError` and the errors of `api.a1111.errors`."""
    request = infotext_parser.filled(request)
    _check_count(request)
    if request.firstphase_width or request.firstphase_height:
        size = {"width": request.firstphase_width, "height": request.firstphase_height}
        request = request.model_copy(update={name: side for name, side in size.items() if side})
    fields = _common_fields(request, farm)
    if request.enable_hr:
        fields["hires"] = _hires(request, farm)
    return _translation("txt2img", request, farm, fields, [{}] * request.batch_size)


def img2img(request: Img2Img, farm: FarmFacts) -> Translation:
    """Translate an img2img request. Raises `RequestValidationError` and the errors of `api.a1111.errors`."""
    request = infotext_parser.filled(request)
    _check_count(request)
    if not request.init_images:
        raise InitImageMissing
    pictures = request.init_images
    if len(pictures) > request.batch_size:
        raise Impossible(f"bad number of images passed: {len(pictures)}; expecting {request.batch_size} or less")
    fields = {**_common_fields(request, farm), "strength": _as_float(request.denoising_strength), **_canvas(request)}
    if len(pictures) == 1:
        return _translation("img2img", request, farm, {**fields, "init_image": pictures[0]}, [{}] * request.batch_size)
    request = request.model_copy(update={"batch_size": len(pictures)})
    return _translation("img2img", request, farm, fields, [{"init_image": picture} for picture in pictures])


def _translation(
    kind: str,
    request: Txt2Img | Img2Img,
    farm: FarmFacts,
    fields: dict[str, Any],
    batch: Sequence[dict[str, Any]],
) -> Translation:
    _check_scripts(request)
    seed, subseed = (_drawn(number, farm) for number in (request.seed, request.subseed))
    submissions = [
        _validated({**fields, **part, **_seeds(request, seed, subseed, offset), "num_images": count})
        for offset, count, part in _jobs(batch, request.n_iter)
    ]
    second = fields.get("hires", {}).get("checkpoint")
    about = {
        "kind": kind,
        "checkpoint_hash": _hash(fields["checkpoint"], farm),
        "hires_checkpoint_hash": _hash(second, farm) if second else None,
        "seed": seed,
        "subseed": subseed,
        "batch_size": request.batch_size,
        "n_iter": request.n_iter,
        "styles": [name for name in request.styles or [] if name in farm.styles],
        "send_images": request.send_images,
        "grid": request.save_images,
    }
    return Translation(tuple(submissions), about, tuple(ignored_fields.ignored(request)))


def _hash(checkpoint: str, farm: FarmFacts) -> str | None:
    sha256 = farm.checkpoints.sha256s[checkpoint]
    return sha256[: names.HASH_CHARS] if sha256 else None


def _jobs(batch: Sequence[dict[str, Any]], iterations: int) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield each job's first image, its number of images, and the fields that differ between jobs."""
    alike = all(part == batch[0] for part in batch)
    longest = MAX_IMAGES if alike else 1
    for iteration in range(iterations):
        for first in range(0, len(batch), longest):
            yield iteration * len(batch) + first, min(longest, len(batch) - first), batch[first]


def _common_fields(request: Txt2Img | Img2Img, farm: FarmFacts) -> dict[str, Any]:
    """Return the submission fields that txt2img and img2img share."""
    chosen = _chosen_options(request, farm)
    sampler, schedule = names.walk(request.sampler_name or request.sampler_index, request.scheduler)
    return {
        **_prompts(request, farm, request.prompt, request.negative_prompt),
        "steps": request.steps,
        "guidance_scale": _as_float(request.cfg_scale),
        **_size(request.width, request.height),
        "sampler": sampler,
        "schedule": schedule,
        "checkpoint": names.checkpoint(chosen.sd_model_checkpoint, farm.checkpoints),
        "vae": None if chosen.sd_vae.casefold() in options.NO_VAE else names.stem(chosen.sd_vae),
        "clip_skip": max(1, int(chosen.CLIP_stop_at_last_layers)),
    }


def _chosen_options(request: Txt2Img | Img2Img, farm: FarmFacts) -> options.Chosen:
    """Return the session's options under the request's `override_settings`."""
    # An empty text chooses nothing, here as in every field.
    overrides = {
        name: value for name, value in (request.override_settings or {}).items() if value is not None and value != ""
    }
    try:
        return options.Chosen.model_validate({**farm.options, **overrides})
    except ValidationError as error:
        raise _in_a1111_terms(error) from None


def _prompts(request: Txt2Img | Img2Img, farm: FarmFacts, prompt: str, negative_prompt: str) -> dict[str, str]:
    """Apply the request's styles to a pair of prompts; the prompt loses its LoRA tags under `disable_extra_networks`."""
    applied = [farm.styles[name] for name in request.styles or [] if name in farm.styles]
    prompt = styles.applied(prompt, [style.prompt for style in applied])
    return {
        "prompt": split_loras(prompt)[0] if request.disable_extra_networks else prompt,
        "negative_prompt": styles.applied(negative_prompt, [style.negative_prompt for style in applied]),
    }


def _size(width: int, height: int) -> dict[str, int]:
    """Return sides in pixels, rounded down to what the farm renders."""
    return {
        "width": width // SIDE_MULTIPLE_PX * SIDE_MULTIPLE_PX,
        "height": height // SIDE_MULTIPLE_PX * SIDE_MULTIPLE_PX,
    }


def _hires(request: Txt2Img, farm: FarmFacts) -> dict[str, Any]:
    """Return the fields of hires fix. Those that are left out are the first pass's."""
    strength = DEFAULT_STRENGTH if request.denoising_strength is None else request.denoising_strength
    return {
        **_size(*_enlarged(request)),
        "upscaler": names.upscaler(request.hr_upscaler),
        "steps": request.hr_second_pass_steps or None,
        "strength": _as_float(strength),
        "checkpoint": _hires_checkpoint(request, farm),
        **_hires_sampling(request),
        **_hires_prompts(request, farm),
    }


def _hires_checkpoint(request: Txt2Img, farm: FarmFacts) -> str | None:
    name = request.hr_checkpoint_name
    return None if name is None or _is_same(name) else names.checkpoint(name, farm.checkpoints)


def _hires_sampling(request: Txt2Img) -> dict[str, Any]:
    """Return the sampler and schedule of the second pass, if the request names either."""
    sampler = None if _is_same(request.hr_sampler_name) else request.hr_sampler_name
    scheduler = None if _is_same(request.hr_scheduler) else request.hr_scheduler
    if sampler is None and scheduler is None:
        return {}
    first = request.sampler_name or request.sampler_index
    chosen = names.walk(sampler or first, scheduler or request.scheduler)
    return dict(zip(("sampler", "schedule"), chosen, strict=True))


def _hires_prompts(request: Txt2Img, farm: FarmFacts) -> dict[str, str]:
    """Return the prompts of the second pass that are its own."""
    own = {"prompt": request.hr_prompt, "negative_prompt": request.hr_negative_prompt}
    styled = _prompts(request, farm, request.hr_prompt, request.hr_negative_prompt)
    return {name: text for name, text in styled.items() if own[name]}


def _is_same(name: str | None) -> bool:
    """Whether a name of the second pass means that of the first."""
    return (name or "").casefold() in _SAME


def _enlarged(request: Txt2Img) -> tuple[int, int]:
    """Return the size that hires fix asks for: by a factor, or by one or both of the sides."""
    width, height = request.hr_resize_x, request.hr_resize_y
    if width and height:
        return width, height
    if width:
        return width, width * request.height // max(request.width, 1)
    if height:
        return height * request.width // max(request.height, 1), height
    return int(request.width * request.hr_scale), int(request.height * request.hr_scale)


def _canvas(request: Img2Img) -> dict[str, Any]:
    """Return the fields of the resize mode and of the mask."""
    fields: dict[str, Any] = {"resize_mode": _by_index("resize_mode", request.resize_mode, _RESIZES)}
    if not request.mask:
        return fields
    blur = max(request.mask_blur_x, request.mask_blur_y) if request.mask_blur is None else request.mask_blur
    return {
        **fields,
        "mask_image": request.mask,
        "inpaint": {
            "mask_blur": blur,
            "mask_fill": _by_index("inpainting_fill", request.inpainting_fill, _FILLS),
            "mask_invert": bool(request.inpainting_mask_invert),
            "only_masked": request.inpaint_full_res,
            "padding": request.inpaint_full_res_padding,
        },
    }


def _by_index(field: str, index: int, choices: Sequence[Any]) -> Any:
    if 0 <= index < len(choices):
        return choices[index]
    raise _invalid_field(field, f"Input should be between 0 and {len(choices) - 1}")


def _check_scripts(request: Txt2Img | Img2Img) -> None:
    name = request.script_name
    if name and name.casefold() != "none":
        raise ScriptNotFound(f"Script {name[:100]!r} not found")
    for name, arguments in request.alwayson_scripts.items():
        if not ignored_fields.is_disabled(arguments):
            raise ScriptNotFound(f"always on script {name[:100]} not found")


def _check_count(request: PictureRequest) -> None:
    for field in ("batch_size", "n_iter"):
        if not 1 <= getattr(request, field) <= MAX_CALL_IMAGES:
            raise _invalid_field(field, f"Input should be between 1 and {MAX_CALL_IMAGES}")
    if request.batch_size * request.n_iter > MAX_CALL_IMAGES:
        raise _invalid_field("n_iter", f"batch_size times n_iter should be less than or equal to {MAX_CALL_IMAGES}")


def _drawn(seed: int, farm: FarmFacts) -> int:
    return farm.draw(LAST_DRAWN_SEED) if seed < 0 else seed


def _seeds(request: PictureRequest, seed: int, subseed: int, offset: int) -> dict[str, Any]:
    """Return the seeds of a job whose first image is number `offset`. With a variation only the subseed counts up."""
    if not request.subseed_strength:
        return {"seed": _plus(seed, offset)}
    strength = _as_float(request.subseed_strength)
    return {"seed": seed, "variation": {"seed": _plus(subseed, offset), "strength": strength}}


def _plus(seed: int, offset: int) -> int:
    # One that is out of bounds stays so, to be refused.
    return (seed + offset) % (MAX_SEED + 1) if seed <= MAX_SEED else seed


def _as_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        return float("inf")


def _validated(fields: dict[str, Any]) -> Submission:
    try:
        return Submission.model_validate(fields)
    except ValidationError as error:
        raise _in_a1111_terms(error) from None


def _in_a1111_terms(error: ValidationError) -> RequestValidationError:
    details = error.errors(include_url=False, include_context=False, include_input=False)
    return RequestValidationError([{**detail, "loc": ("body", _a1111_name(detail["loc"]))} for detail in details])


def _a1111_name(loc: tuple[int | str, ...]) -> str:
    path = ".".join(str(part) for part in loc)
    return _A1111_NAMES.get(path, path)


def _invalid_field(field: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"type": "value_error", "loc": ("body", field), "msg": message}])
