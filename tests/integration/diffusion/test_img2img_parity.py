"""What our latents start from equals, bit for bit, what diffusers' pipelines prepare with the same generator."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
)
from PIL import Image
from torch import Tensor

from shared.files import checkpoints
from shared.vocabulary.params import MaskFill, Upscaler
from shared.vocabulary.samplers import SCHEDULES, Sampler
from tests.support.studio import doubled, spec
from tests.support.walking import SAME, DoublePrecision, distance
from worker.diffusion import checkpoint_loader, img2img, samplers
from worker.diffusion.checkpoint_loader import LoadedCheckpoint
from worker.engine.request import Start
from worker.engine.runner import DiffusionRunner

DEMO = Path(__file__).parents[3] / "deploy/standalone/checkpoints/farm-demo.safetensors"
WIDTH, HEIGHT = 64, 96
SEED = 11
SHAPE = (1, 4, HEIGHT // 8, WIDTH // 8)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint() -> LoadedCheckpoint:
    return checkpoint_loader.load(checkpoints.inspect(DEMO), CPU, torch.float32)


def pipeline(kind: Any, checkpoint: LoadedCheckpoint) -> Any:
    return kind(
        vae=checkpoint.vae,
        text_encoder=checkpoint.text_encoder,
        tokenizer=checkpoint.tokenizer,
        unet=checkpoint.unet,
        scheduler=DDIMScheduler.from_config(checkpoint.scheduler_config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def pixels() -> Any:
    return np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def mask() -> Any:
    """Soft levels on purpose, and edges that do not lie on latents."""
    levels = np.random.default_rng(4).random((HEIGHT, WIDTH)).astype(np.float32)
    levels[:21] = 1
    levels[75:] = 0
    return levels


def seeded() -> torch.Generator:
    return torch.Generator("cpu").manual_seed(SEED)


def drawn(generator: torch.Generator) -> Tensor:
    return torch.randn(SHAPE, generator=generator)


@torch.no_grad()
def test_img2img_starts_where_diffusers_does(checkpoint: LoadedCheckpoint) -> None:
    theirs = pipeline(StableDiffusionImg2ImgPipeline, checkpoint)
    timestep = torch.tensor([501])
    image = theirs.image_processor.preprocess(Image.fromarray(pixels()))
    expected = theirs.prepare_latents(image, timestep, 1, 1, torch.float32, CPU, seeded())
    generator = seeded()
    clean = img2img.Encoding(checkpoint.vae, pixels()).latents(drawn(generator))
    alpha = theirs.scheduler.alphas_cumprod[timestep]
    assert torch.equal(expected, alpha.sqrt() * clean + (1 - alpha).sqrt() * drawn(generator))
    assert (clean.dtype, clean.shape) == (torch.float32, torch.Size(SHAPE))


@torch.no_grad()
@pytest.mark.parametrize("strength", ["part", "all"])
def test_inpainting_starts_where_diffusers_does(checkpoint: LoadedCheckpoint, strength: str) -> None:
    """On a plain checkpoint, the clean latents that are blended back in, and the noise."""
    theirs = pipeline(StableDiffusionInpaintPipeline, checkpoint)
    _, noise, clean = theirs.prepare_latents(
        1,
        4,
        HEIGHT,
        WIDTH,
        torch.float32,
        CPU,
        seeded(),
        image=theirs.image_processor.preprocess(Image.fromarray(pixels())),
        timestep=torch.tensor([501]),
        is_strength_max=strength == "all",
        return_noise=True,
        return_image_latents=True,
    )
    generator = seeded()
    assert torch.equal(clean, img2img.Encoding(checkpoint.vae, pixels()).latents(drawn(generator)))
    assert torch.equal(noise, drawn(generator))


def channels(checkpoint: LoadedCheckpoint, share: Any, noise: Tensor | None) -> Tensor:
    masked = img2img.masked_encoding(checkpoint.vae, pixels(), share).latents(noise)
    return img2img.inpainting_channels(masked, share)


@torch.no_grad()
def test_mask_and_masked_picture_are_those_of_diffusers(checkpoint: LoadedCheckpoint) -> None:
    theirs = pipeline(StableDiffusionInpaintPipeline, checkpoint)
    levels = (mask() * 255).round().astype(np.uint8)
    init = theirs.image_processor.preprocess(Image.fromarray(pixels()))
    condition = theirs.mask_processor.preprocess(Image.fromarray(levels), height=HEIGHT, width=WIDTH)
    expected_mask, expected_latents = theirs.prepare_mask_latents(
        condition, init * (condition < 0.5), 1, HEIGHT, WIDTH, torch.float32, CPU, seeded(), False
    )
    share = levels.astype(np.float32) / 255
    assert torch.equal(expected_mask, img2img.latent_mask(share, CPU))
    ours = channels(checkpoint, share, drawn(seeded()))
    assert torch.equal(ours, torch.cat([expected_mask, expected_latents], dim=1))


@torch.no_grad()
def test_without_a_mask_an_inpainting_checkpoint_sees_gray_and_may_paint_all(checkpoint: LoadedCheckpoint) -> None:
    every = np.ones((HEIGHT, WIDTH), np.float32)
    noise = drawn(seeded())
    assert torch.equal(channels(checkpoint, None, noise), channels(checkpoint, every, noise))
    blank = channels(checkpoint, None, None)
    assert blank.shape == (1, 5, *SHAPE[2:])
    assert (blank[:, :1] == 1).all()
    gray = torch.zeros(1, 3, HEIGHT, WIDTH).to(memory_format=torch.channels_last)  # the memory order decides bits
    theirs = checkpoint.vae.encode(gray).latent_dist.mode()
    assert torch.equal(blank[:, 1:], checkpoint.vae.config.scaling_factor * theirs)


@torch.no_grad()
def test_a_picture_survives_the_way_there_and_back(checkpoint: LoadedCheckpoint) -> None:
    """Flat colours, which the demo VAE knows."""
    flat = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    flat[...] = (220, 30, 30)
    latents = img2img.Encoding(checkpoint.vae, flat).latents(None)
    image = checkpoint.vae.decode(latents / checkpoint.vae.config.scaling_factor).sample
    back = (image / 2 + 0.5).clamp(0, 1)[0].mean((1, 2)) * 255
    assert (back - torch.tensor([220.0, 30.0, 30.0])).abs().max() < 25


def test_fills_of_latents() -> None:
    latents, noise = torch.full(SHAPE, 2.0), torch.full(SHAPE, 5.0)
    share = np.zeros((HEIGHT, WIDTH), np.float32)
    share[:16, :8] = 1
    results = {fill: img2img.filled(latents, share, fill, noise) for fill in MaskFill}
    for fill, inside in {MaskFill.FILL: 2, MaskFill.ORIGINAL: 2, MaskFill.NOISE: 5, MaskFill.NOTHING: 0}.items():
        expected = latents.clone()
        expected[:, :, :2, :1] = inside
        assert torch.equal(results[fill], expected), fill
        assert torch.equal(img2img.filled(latents, None, fill, noise), latents)


@pytest.mark.parametrize("upscaler", img2img.INTERPOLATIONS)
def test_latents_grow(upscaler: Upscaler) -> None:
    grown = img2img.upscale_latents(torch.full(SHAPE, 1.5), width=104, height=200, upscaler=upscaler)
    assert grown.shape == (1, 4, 25, 13)
    assert torch.allclose(grown, torch.tensor(1.5))


def test_every_latent_upscaler_is_known_and_its_own() -> None:
    assert set(img2img.INTERPOLATIONS) == set(Upscaler) - {Upscaler.LANCZOS}
    latents = drawn(seeded())
    # Half the size: enlarging alone would not show what antialiasing does.
    shrunk = [
        img2img.upscale_latents(latents, width=WIDTH // 2, height=HEIGHT // 2, upscaler=upscaler)
        for upscaler in img2img.INTERPOLATIONS
    ]
    assert not any(torch.equal(one, other) for at, one in enumerate(shrunk) for other in shrunk[:at])


@pytest.mark.parametrize("sampler", [Sampler.DPMPP_2M, Sampler.DDIM, Sampler.EULER, Sampler.HEUN])
@pytest.mark.parametrize("strength", [0.4, 0.9])
@pytest.mark.parametrize("masked", [False, True], ids=["img2img", "inpaint"])
def test_the_whole_walk_is_the_pipelines(
    checkpoint: LoadedCheckpoint, sampler: Sampler, strength: float, masked: bool
) -> None:
    """Latents of our runner and of diffusers' pipelines, which make int(steps * strength) steps, one fewer than the farm's rule.

    At strength 1 the inpainting pipeline forgets the picture and starts from noise alone; the farm, as A1111, does not.
    """
    steps = 10
    checkpoint = doubled(checkpoint)
    kind: Any = StableDiffusionInpaintPipeline if masked else StableDiffusionImg2ImgPipeline
    theirs_pipeline = pipeline(kind, checkpoint)
    theirs_pipeline.scheduler = samplers.make(sampler, SCHEDULES[sampler][0], steps, checkpoint.scheduler_config)
    theirs_pipeline.set_progress_bar_config(disable=True)
    painted = mask() if masked else None
    extra: dict[str, Any] = {"mask_image": torch.from_numpy(painted)[None, None]} if painted is not None else {}
    with DoublePrecision():
        theirs = theirs_pipeline(
            "a green square",
            image=Image.fromarray(pixels()),
            width=WIDTH,
            height=HEIGHT,
            strength=strength,
            num_inference_steps=steps,
            guidance_scale=5.0,
            generator=seeded(),
            output_type="latent",
            **extra,
        ).images
    runner = DiffusionRunner.of(checkpoint)
    start = Start(pixels(), painted)
    wanted = spec(
        prompt="a green square",
        guidance_scale=5.0,
        width=WIDTH,
        height=HEIGHT,
        steps=steps,
        last=int(steps * strength),
        sampler=sampler,
        schedule=SCHEDULES[sampler][0],
        start=start,
        seed=SEED,
    )
    with DoublePrecision():
        image = runner.prepare(runner.draft(wanted)).result()
        while not image.is_over:
            runner.denoise([image])
    assert image.walk.x.dtype is torch.float64
    # Between the halves of Heun's steps the level is read off the input's scale: four roundings in float32, call by call.
    is_rounded = masked and sampler is Sampler.HEUN
    assert distance(image.walk.x, theirs) < (image.walk.calls_done * 4 * 2.0**-24 if is_rounded else SAME)
