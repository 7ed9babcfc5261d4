"""A job in the engine's words."""

import io
from threading import Thread
from typing import Any

import numpy as np
from PIL import Image

from shared.files.pictures import PixelBudget
from shared.vocabulary.params import Inpaint, MaskFill, ResizeMode, Variation
from tests.support.factories import hires, params
from worker.slots.engine_specs import EngineSpecs


def png(pixels: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


NOISE = np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)
LEFT = np.zeros((64, 64), dtype=np.uint8)
LEFT[:, :32] = 255
BUDGET = PixelBudget(2**24)
STORED = {"init": png(NOISE), "mask": png(LEFT)}

HIRES = hires(steps=10, strength=0.5, guidance_scale=3.0, prompt="larger <lora:a:1>", negative_prompt="no")


def test_each_image_has_its_own_seed_and_the_same_passes() -> None:
    specs = EngineSpecs.of(params(num_images=3, seed=5), STORED.__getitem__, BUDGET).specs()
    assert [spec.seed for spec in specs] == [5, 6, 7]
    assert len({spec.passes for spec in specs}) == 1
    assert specs[0].start is None


def test_variations_share_the_seed_and_count_up_the_other() -> None:
    job = params(num_images=2, seed=5, variation=Variation(seed=8, strength=0.3))
    specs = EngineSpecs.of(job, STORED.__getitem__, BUDGET).specs()
    assert [(spec.seed, spec.variation_seed, spec.variation_strength) for spec in specs] == [(5, 8, 0.3), (5, 9, 0.3)]


def test_tags_are_taken_out_of_prompts() -> None:
    (spec,) = EngineSpecs.of(params(prompt="a cat <lora:a:1>", hires=HIRES), STORED.__getitem__, BUDGET).specs()
    assert [leg.prompt.strip() for leg in spec.passes] == ["a cat", "larger"]


def test_hires_makes_the_steps_asked_for() -> None:
    job = params(hires=HIRES)
    second = EngineSpecs.of(job, STORED.__getitem__, BUDGET).specs()[0].passes[1]
    assert (second.width, second.steps, second.last) == (128, 20, 10)
    assert job.unet_calls == 4 + 10


def test_strength_decides_how_many_steps_are_made_on_an_init_image() -> None:
    job = params(kind="img2img", init_image="init", strength=0.5, steps=20)
    (spec,) = EngineSpecs.of(job, STORED.__getitem__, BUDGET).specs()
    assert (spec.passes[0].steps, spec.passes[0].last) == (20, 11)  # one more than diffusers, as A1111
    assert spec.start is not None
    assert (spec.start.pixels == NOISE).all()
    assert job.unet_calls == 11


def test_what_is_not_masked_comes_back_as_it_was() -> None:
    painting = Inpaint(mask_blur=0, mask_fill=MaskFill.ORIGINAL, mask_invert=False, only_masked=False, padding=0)
    job = params(kind="img2img", init_image="init", mask_image="mask", strength=1.0, inpaint=painting)
    order = EngineSpecs.of(job, STORED.__getitem__, BUDGET)
    (spec,) = order.specs()
    assert spec.start is not None
    assert spec.start.mask is not None
    done = order.finished(np.full((64, 64, 3), 9, dtype=np.uint8))
    assert (done[:, 32:] == NOISE[:, 32:]).all()
    assert (done[:, :32] == 9).all()


def test_finished_pictures_are_enlarged_last() -> None:
    job = params(kind="img2img", init_image="init", strength=0.5, upscale=1.5, resize_mode=ResizeMode.CROP)
    done = EngineSpecs.of(job, STORED.__getitem__, BUDGET).finished(NOISE)
    assert done.shape == (96, 96, 3)


def test_pictures_wait_until_there_is_room_for_them() -> None:
    """The job before holds the whole budget; once it is done the next is prepared."""
    budget, made = PixelBudget(NOISE.shape[0] * NOISE.shape[1] + LEFT.size), []
    job = params(
        init_image="init",
        strength=0.5,
        mask_image="mask",
        inpaint=Inpaint(mask_blur=0, mask_fill=MaskFill.ORIGINAL, mask_invert=False, only_masked=False, padding=0),
    )
    waiting = Thread(target=lambda: made.append(EngineSpecs.of(job, STORED.__getitem__, budget)))
    with budget.reserve(1):
        waiting.start()
        waiting.join(0.2)
        assert not made
        assert EngineSpecs.of(params(), STORED.__getitem__, budget).canvas is None  # needs none
    waiting.join()
    assert made[0].canvas is not None
