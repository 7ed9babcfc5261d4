"""Parameters and scripts that the farm does not support: which of a request to report in `X-Farm-Ignored`."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from api.a1111 import names, options
from api.a1111.requests import Img2Img, Txt2Img

# By field, the values that change nothing. Clients send many of them with every request.
_HARMLESS: Mapping[str, frozenset[Any]] = MappingProxyType(
    {
        "restore_faces": frozenset({None, False}),
        "tiling": frozenset({None, False}),
        "eta": frozenset({None, 0, 1}),
        "s_min_uncond": frozenset({None, 0}),
        "s_churn": frozenset({None, 0}),
        "s_tmin": frozenset({None, 0}),
        "s_noise": frozenset({None, 0, 1}),
        "refiner_checkpoint": frozenset({None, "", "None"}),
        "firstpass_image": frozenset({None, ""}),
        "initial_noise_multiplier": frozenset({None, 1}),
        "latent_mask": frozenset({None, ""}),
        "mask_round": frozenset({True}),
    }
)
LATENT_RESIZE = 3


def ignored(request: Txt2Img | Img2Img) -> Iterator[str]:
    """Yield the names of the parameters that this request sets and the farm ignores."""
    for field, harmless in _HARMLESS.items():
        if getattr(request, field, None) not in harmless | {None}:
            yield field
    if request.seed_resize_from_h > 0 and request.seed_resize_from_w > 0:
        yield "seed_resize_from"
    if request.scheduler and not _is_supported(request, request.scheduler):
        yield "scheduler"
    yield from (f"override_settings.{name}" for name in options.ignored(request.override_settings or {}))
    yield from _ignored_by_hires(request) if isinstance(request, Txt2Img) else _ignored_by_img2img(request)


def is_disabled(script: Any) -> bool:
    """Whether a script's arguments leave it off: none, all false or empty, or marked as not enabled."""
    arguments = script.get("args") if isinstance(script, dict) else script
    if isinstance(arguments, list):
        return all(_is_off(argument) for argument in arguments)
    return _is_off(arguments)


def _is_off(argument: Any) -> bool:
    if isinstance(argument, dict):
        return not any(argument.get(name, False) for name in ("enabled", "enable", "ad_model")) or not argument
    return not argument


def _is_supported(request: Txt2Img | Img2Img, scheduler: str) -> bool:
    return names.is_schedule(scheduler, names.walk(request.sampler_name or request.sampler_index, None)[0])


def _ignored_by_hires(request: Txt2Img) -> Iterator[str]:
    if not request.enable_hr:
        return
    if (request.hr_upscaler or "").casefold() == "nearest":
        yield "hr_upscaler"
    width, height = request.hr_resize_x, request.hr_resize_y
    # The original cuts off what does not fit; here the picture is stretched.
    if width and height and width * request.height != height * request.width:
        yield "hr_resize crop"


def _ignored_by_img2img(request: Img2Img) -> Iterator[str]:
    if request.resize_mode == LATENT_RESIZE:
        yield "resize_mode"
    if request.mask_blur is None and request.mask_blur_x != request.mask_blur_y:
        yield "mask_blur_x"
