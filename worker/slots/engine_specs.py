"""Translates a job's parameters into specs for the engine, and the engine's pixels into the job's pictures."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from shared.files import pictures
from shared.files.pictures import PixelBudget
from shared.vocabulary.params import GenerationParams, Hires, Upscaler
from shared.vocabulary.prompt_grammar import split_loras
from worker.diffusion import canvas
from worker.diffusion.canvas import Canvas
from worker.engine.request import ImageSpec, Pass, Pixels, Start

Fetch = Callable[[str], bytes]


@dataclass(frozen=True, slots=True)
class EngineSpecs:
    """A job's parameters and, for img2img, the prepared picture that its images start from."""

    params: GenerationParams
    canvas: Canvas | None

    @classmethod
    def of(cls, params: GenerationParams, fetch: Fetch, budget: PixelBudget) -> "EngineSpecs":
        """Fetch the init image and mask, and prepare them once the budget allows it. Raises what `fetch` raises."""
        if params.init_image is None:
            return cls(params, None)
        init, mask = fetch(params.init_image), fetch(params.mask_image) if params.mask_image else None
        with budget.reserve(sum(pictures.pixels_in(data) for data in (init, mask) if data)):
            return cls(params, _canvas(params, init, mask))

    def specs(self) -> list[ImageSpec]:
        """Return one engine spec per image. All start from the same picture, which is then encoded once."""
        params, start = self.params, self._start()
        passes = _passes(params)
        return [
            ImageSpec(
                passes=passes,
                seed=seed,
                checkpoint=params.checkpoint,
                variation_seed=variation_seed,
                variation_strength=params.variation.strength if params.variation else 0.0,
                clip_skip=params.clip_skip,
                vae=params.vae,
                start=start,
            )
            for seed, variation_seed in zip(params.seeds, params.variation_seeds, strict=True)
        ]

    def finished(self, pixels: Pixels) -> Pixels:
        """Paste an inpainted region back into the whole picture, and upscale if the job says so."""
        if self.canvas is not None:
            pixels = canvas.finish(self.canvas, pixels)
        return canvas.upscale(pixels, self.params.upscale) if self.params.upscale > 1 else pixels

    def _start(self) -> Start | None:
        if self.canvas is None:
            return None
        fill = self.params.inpaint.mask_fill if self.params.inpaint else None
        return Start(self.canvas.pixels, self.canvas.mask, fill) if fill else Start(self.canvas.pixels)


def _canvas(params: GenerationParams, init: bytes, mask: bytes | None) -> Canvas:
    picture = pictures.decode(init)
    prepare = partial(canvas.prepare, picture, width=params.width, height=params.height, resize_mode=params.resize_mode)
    if mask is None or params.inpaint is None:
        return prepare(mask=None)
    painting = params.inpaint
    return prepare(
        mask=pictures.decode_mask(mask),
        mask_blur=painting.mask_blur,
        mask_invert=painting.mask_invert,
        only_masked=painting.only_masked,
        padding=painting.padding,
        fill=painting.mask_fill,
    )


def _passes(params: GenerationParams) -> tuple[Pass, ...]:
    first = _pass(params, steps=params.steps)
    hires = params.hires
    if hires is None:
        return (first,)
    second = _pass(hires, steps=hires.schedule_steps, upscaler=hires.upscaler)
    return first, replace(second, checkpoint=hires.checkpoint)


def _pass(params: GenerationParams | Hires, *, steps: int, upscaler: Upscaler | None = None) -> Pass:
    return Pass(
        prompt=split_loras(params.prompt)[0],
        negative_prompt=params.negative_prompt,
        width=params.width,
        height=params.height,
        steps=steps,
        last=params.last_steps,
        guidance_scale=params.guidance_scale,
        sampler=params.sampler,
        schedule=params.schedule,
        loras=params.loras,
        upscaler=upscaler,
    )
