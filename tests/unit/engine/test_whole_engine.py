"""Whatever parameters pass the edge are rendered: of the right size, finite, with as many calls as were announced."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from shared.files.pictures import PixelBudget
from shared.files.weights import Shelves
from shared.vocabulary.params import GenerationParams, Hires, Inpaint, Lora, MaskFill, ResizeMode, Upscaler, Variation
from shared.vocabulary.samplers import SCHEDULES, Sampler
from tests.support import adapters, studio
from tests.support.factories import params
from tests.support.waiting import LIMIT_S
from worker.engine.draft import ExtraWeights
from worker.engine.engine import run_alone
from worker.engine.runner import DiffusionRunner
from worker.slots.engine_specs import EngineSpecs

EXAMPLES = 8
SIDES = (64, 72, 96)
PROMPTS = (
    "",
    "a red circle",
    "a word, (word:1.2), <lora:one:0.5>",
    "a red circle AND a blue square :-0.7 AND [x|y] :0",
    "a [red:blue:9] [circle::0.0] [a|b|c] (star:-1.5) [[dim]]",
    "[a|b] BREAK BREAK , , , (((deep:0)))",
    "\\(x\\) [from:to:150] [:x:1] (unclosed [brackets :1.2",
    ("word, (weighted:1.3) " * 500)[:10_000],
)
LIGHT = (Lora(name="one", weight=0.5, text_encoder_weight=0.0),)
HEAVY = (Lora(name="one", weight=-1.0, text_encoder_weight=1.0),)
GUIDANCE = (0.0, 0.5, 1.0, 7.0, 50.0)


def file(pixels: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


def one_pixel() -> Any:
    mask = np.zeros((50, 70), np.uint8)
    mask[49, 0] = 255
    return mask


RNG = np.random.default_rng(3)
STORED = {
    "init": file(RNG.integers(0, 255, (50, 70, 3), dtype=np.uint8)),
    "thin": file(RNG.integers(0, 255, (1, 90, 3), dtype=np.uint8)),
    "pixel": file(one_pixel()),
    "all": file(np.full((8, 8), 255, np.uint8)),
    "none": file(np.zeros((8, 8), np.uint8)),
}


@st.composite
def pairs(draw: st.DrawFn) -> dict[str, Any]:
    sampler = draw(st.sampled_from(Sampler))
    return {"sampler": sampler, "schedule": draw(st.sampled_from(SCHEDULES[sampler]))}


@st.composite
def second_passes(draw: st.DrawFn) -> Hires:
    return Hires(
        width=draw(st.sampled_from(SIDES)),
        height=draw(st.sampled_from(SIDES)),
        upscaler=draw(st.sampled_from(Upscaler)),
        steps=draw(st.integers(1, 2)),
        strength=draw(st.sampled_from([0.0, 0.01, 0.5, 1.0])),
        guidance_scale=draw(st.sampled_from(GUIDANCE)),
        prompt=draw(st.sampled_from(PROMPTS)),
        negative_prompt=draw(st.sampled_from(PROMPTS)),
        loras=draw(st.sampled_from([(), HEAVY])),
        **draw(pairs()),
    )


@st.composite
def jobs(draw: st.DrawFn) -> GenerationParams:
    """Anything that the edge lets through, small."""
    how: dict[str, Any] = {
        "prompt": draw(st.sampled_from(PROMPTS)),
        "negative_prompt": draw(st.sampled_from(PROMPTS)),
        "width": draw(st.sampled_from(SIDES)),
        "height": draw(st.sampled_from(SIDES)),
        "steps": draw(st.integers(1, 3)),
        "guidance_scale": draw(st.sampled_from(GUIDANCE)),
        "clip_skip": draw(st.integers(1, 2)),
        "seed": draw(st.sampled_from([0, 1, 2**32 - 1])),
        "num_images": draw(st.sampled_from([1, 1, 2])),
        "upscale": draw(st.sampled_from([1.0, 1.7])),
        "vae": draw(st.sampled_from([None, None, "own"])),
        "loras": draw(st.sampled_from([(), (), LIGHT, LIGHT + HEAVY])),
        **draw(pairs()),
    }
    if draw(st.booleans()):
        strengths = st.sampled_from([0.0, 0.5, 1.0])
        how["variation"] = Variation(seed=draw(st.sampled_from([0, 2**32 - 1])), strength=draw(strengths))
    if draw(st.booleans()):
        how["hires"] = draw(second_passes())
    if draw(st.booleans()):
        how |= {"init_image": draw(st.sampled_from(["init", "thin"])), "resize_mode": draw(st.sampled_from(ResizeMode))}
        how["strength"] = draw(st.sampled_from([0.0, 0.3, 1.0]))
        if draw(st.booleans()):
            how |= {"mask_image": draw(st.sampled_from(["pixel", "all", "none"])), "inpaint": draw(paintings())}
    return params(**how)


@st.composite
def paintings(draw: st.DrawFn) -> Inpaint:
    return Inpaint(
        mask_blur=draw(st.sampled_from([0, 4, 64])),
        mask_fill=draw(st.sampled_from(MaskFill)),
        mask_invert=draw(st.booleans()),
        only_masked=draw(st.booleans()),
        padding=draw(st.sampled_from([0, 32, 256])),
    )


@pytest.fixture(scope="module")
def shelves(tmp_path_factory: pytest.TempPathFactory) -> Shelves:
    return adapters.shelves(tmp_path_factory.mktemp("weights"))


@seed(1)
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow], database=None)
@given(job=jobs())
def test_what_passes_the_edge_is_rendered(shelves: Shelves, job: GenerationParams) -> None:
    checkpoint = studio.demo()
    runner = DiffusionRunner.of(checkpoint, ExtraWeights.at(shelves, memory_bytes=2**30))
    order = EngineSpecs.of(job, STORED.__getitem__, PixelBudget(2**24))
    specs = order.specs()
    assert len(specs) == job.num_images
    assert sum(runner.draft(spec).steps_total for spec in specs) == job.unet_calls
    for spec in specs:
        last = spec.passes[-1]
        pixels = run_alone(runner, spec)
        assert pixels.shape == (last.height, last.width, 3)
        whole = order.finished(pixels)
        assert whole.dtype == np.uint8
        if order.canvas is None or order.canvas.frame is None:
            assert whole.shape[:2] == (round(last.height * job.upscale), round(last.width * job.upscale))


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_variation_is_all_of_one_seed_or_of_the_other(strength: float) -> None:
    """Sixteen images: all alike without variation seeds acting, all different else."""
    job = params(seed=4, num_images=16, variation=Variation(seed=9, strength=strength))
    runner = DiffusionRunner.of(studio.demo())
    noise = [
        runner.draft(spec).passes[0].noise for spec in EngineSpecs.of(job, STORED.__getitem__, PixelBudget(1)).specs()
    ]
    plain = params(seed=9 if strength else 4, num_images=16)
    expected = [
        runner.draft(spec).passes[0].noise for spec in EngineSpecs.of(plain, STORED.__getitem__, PixelBudget(1)).specs()
    ]
    for ours, theirs in zip(noise, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2.0**-22)  # times a sine and by it again


def test_images_of_one_job_encode_their_picture_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And each picks its own sample of what comes out."""
    vae, pictures = studio.demo().vae, []
    encode = vae.encode

    def counted(picture: Any) -> Any:
        pictures.append(picture)
        return encode(picture)

    monkeypatch.setattr(vae, "encode", counted)
    job = params(num_images=3, init_image="init", strength=0.3, width=64, height=64, steps=2)
    specs = EngineSpecs.of(job, STORED.__getitem__, PixelBudget(2**24)).specs()
    runner = DiffusionRunner.of(studio.demo())
    with studio.running(runner) as engine:
        together = [engine.submit(spec) for spec in specs]
        ours = [request.result(LIMIT_S) for request in together]
    assert len(pictures) == 1
    for spec, pixels in zip(specs, ours, strict=True):
        alone = run_alone(DiffusionRunner.of(studio.demo()), spec)
        assert abs(pixels.astype(int) - alone.astype(int)).max() <= 1  # where rounding crosses from level to level
    assert len(pictures) == 4
    assert (ours[0] != ours[1]).any()
