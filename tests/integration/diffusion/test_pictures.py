"""Real pictures of the demo checkpoint: right to look at and equal to diffusers' own."""

import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file

from deploy.standalone.training.shapes import PALETTE
from shared.errors import OutOfMemory
from shared.files import pictures
from shared.files.pictures import PixelBudget
from shared.files.weights import Shelves
from shared.vocabulary.params import Inpaint, Lora, MaskFill, Upscaler
from shared.vocabulary.samplers import SCHEDULES, Sampler, Schedule, img2img_steps
from tests.support import adapters, studio
from tests.support.factories import params
from tests.support.studio import DemoEngine, demo, spec
from tests.support.waiting import LIMIT_S
from worker.diffusion.lora import Mix
from worker.engine.draft import ExtraWeights
from worker.engine.engine import run_alone
from worker.engine.request import ImageSpec, Pixels, Start
from worker.engine.runner import DiffusionRunner
from worker.slots import png
from worker.slots.engine_specs import EngineSpecs

# As A1111 spaces its timesteps, whatever a checkpoint's config says.
EVENLY = {"timestep_spacing": "linspace"}
EULER_A: dict[str, Any] = {"sampler": Sampler.EULER_A, "schedule": Schedule.UNIFORM}


@pytest.fixture(scope="module")
def engine() -> Iterator[DemoEngine]:
    with studio.running(DiffusionRunner.of(demo())) as engine:
        yield engine


def color_at(pixels: Pixels, x: float, y: float) -> str:
    """The nearest named colour of a small patch around a point given in shares of the side."""
    side = pixels.shape[0]
    patch = pixels[int(y * side) - 4 : int(y * side) + 4, int(x * side) - 4 : int(x * side) + 4].reshape(-1, 3)
    mean = patch.mean(axis=0)
    return min(PALETTE, key=lambda name: float(np.abs(mean - np.array(PALETTE[name])).sum()))


COLORS = (("red", "circle", "blue"), ("yellow", "square", "red"), ("green", "circle", "yellow"))


def seen(pixels: Pixels) -> tuple[str, set[str]]:
    """The colour in the middle, and those of the corners."""
    return color_at(pixels, 0.5, 0.5), {color_at(pixels, x, y) for x in (0.06, 0.94) for y in (0.06, 0.94)}


def test_pictures_follow_their_prompts_with_every_sampler(engine: DemoEngine) -> None:
    """All samplers and all schedules at once, in one batch as far as it holds them."""
    pairs = [(sampler, schedule) for sampler, able in SCHEDULES.items() for schedule in able[:1]]
    pairs += [(Sampler.EULER, schedule) for schedule in SCHEDULES[Sampler.EULER][1:]]
    requests = []
    for number, (sampler, schedule) in enumerate(pairs):
        color, shape, ground = COLORS[number % len(COLORS)]
        how: dict[str, Any] = {"sampler": sampler, "schedule": schedule, "steps": 16, "seed": number}
        requests.append(engine.submit(spec(prompt=f"a {color} {shape} on a {ground} background", **how)))
    for number, (pair, request) in enumerate(zip(pairs, requests, strict=True)):
        color, _, ground = COLORS[number % len(COLORS)]
        assert seen(request.result(LIMIT_S)) == (color, {ground}), pair


def test_large_pictures_follow_their_prompts(engine: DemoEngine) -> None:
    large: dict[str, Any] = {"width": 256, "height": 256, "steps": 20}
    requests = [
        engine.submit(spec(prompt=f"a {color} {shape} on a {ground} background", seed=seed, **large))
        for seed, (color, shape, ground) in enumerate(COLORS[:2], start=1)
    ]
    for (color, _, ground), request in zip(COLORS, requests, strict=False):
        assert seen(request.result(LIMIT_S)) == (color, {ground})


def test_little_strength_keeps_the_layout_and_much_changes_it(engine: DemoEngine) -> None:
    before = engine.submit(spec(seed=1, steps=16)).result(LIMIT_S)
    other = "a green square on a yellow background"
    changed = {
        strength: engine.submit(
            spec(prompt=other, seed=5, steps=20, last=img2img_steps(20, strength), start=Start(before))
        ).result(LIMIT_S)
        for strength in (0.3, 0.8)
    }
    assert seen(changed[0.3]) == seen(before) == ("red", {"blue"})
    assert seen(changed[0.8]) == ("green", {"yellow"})
    differences = {strength: float(np.abs(pixels.astype(int) - before).mean()) for strength, pixels in changed.items()}
    assert differences[0.3] * 4 < differences[0.8]


@pytest.mark.parametrize("only_masked", [False, True])
def test_inpainting_changes_only_what_is_masked(engine: DemoEngine, only_masked: bool) -> None:
    before = engine.submit(spec(seed=1, steps=16)).result(LIMIT_S)
    mask = np.zeros((128, 128), dtype=np.uint8)
    mask[:, 64:] = 255
    stored = {"init": png.encode(before, {}), "mask": pictures.to_png(Image.fromarray(mask))}
    painting = Inpaint(mask_blur=0, mask_fill=MaskFill.FILL, mask_invert=False, only_masked=only_masked, padding=8)
    job = params(
        kind="img2img",
        prompt="a green square on a yellow background",
        init_image="init",
        mask_image="mask",
        inpaint=painting,
        strength=1.0,
        steps=16,
        width=128,
        height=128,
    )
    order = EngineSpecs.of(job, stored.__getitem__, PixelBudget(2**24))
    after = order.finished(engine.submit(order.specs()[0]).result(LIMIT_S))
    assert (after[:, :64] == before[:, :64]).all()
    assert float(np.abs(after[:, 64:].astype(int) - before[:, 64:]).mean()) > 60


def test_a_second_pass_keeps_what_the_first_has_drawn(engine: DemoEngine) -> None:
    for upscaler in (Upscaler.LATENT, Upscaler.LANCZOS):
        second = replace(spec().passes[0], width=192, height=192, steps=16, last=8, upscaler=upscaler)
        pixels = engine.submit(spec(second, seed=1, steps=12)).result(LIMIT_S)
        assert pixels.shape == (192, 192, 3)
        assert seen(pixels) == ("red", {"blue"}), upscaler


def test_a_lora_does_its_work_beside_images_without_it(tmp_path: Path) -> None:
    """One that reads red as blue, in one batch at several weights; no weight changes no bit."""
    adapters.written(tmp_path / "swap.safetensors", adapters.recoloring("red", "blue"))
    shelves = Shelves.at(loras=tmp_path, context_width=adapters.WIDTH)
    runner = DiffusionRunner.of(demo(), ExtraWeights.at(shelves, memory_bytes=10**9))
    prompt = "a red circle on a green background"
    swaps = {weight: (Lora(name="swap", weight=weight, text_encoder_weight=0.0),) for weight in (0.0, 0.5, 1.0)}
    with studio.running(runner) as engine:
        requests = {
            weight: engine.submit(spec(prompt=prompt, seed=2, steps=16, loras=swap)) for weight, swap in swaps.items()
        }
        drawn = {weight: request.result(LIMIT_S) for weight, request in requests.items()}
    assert (seen(drawn[0.0]), seen(drawn[1.0])) == (("red", {"green"}), ("blue", {"green"}))
    plain = run_alone(runner, spec(prompt=prompt, seed=2, steps=16))
    assert (run_alone(runner, spec(prompt=prompt, seed=2, steps=16, loras=swaps[0.0])) == plain).all()
    alone = run_alone(runner, spec(prompt=prompt, seed=2, steps=16, loras=swaps[0.5]))
    assert np.abs(drawn[0.5].astype(int) - alone).max() <= 1


def test_an_embedding_does_its_work(tmp_path: Path) -> None:
    """The vectors of two words under a name of their own: it draws what they draw."""
    tokens = demo().tokenizer("red circle", add_special_tokens=False).input_ids
    vectors = demo().text_encoder.get_input_embeddings().weight[tokens]
    save_file({"emb_params": vectors.clone()}, tmp_path / "Rubyball.safetensors")
    shelves = Shelves.at(embeddings=tmp_path, context_width=adapters.WIDTH)
    runner = DiffusionRunner.of(demo(), ExtraWeights.at(shelves, memory_bytes=0))
    named = run_alone(runner, spec(prompt="a rubyball on a blue background", seed=1))
    assert (named == run_alone(runner, spec(prompt="a red circle on a blue background", seed=1))).all()
    assert seen(named) == ("red", {"blue"})


def test_weights_in_the_prompt_move_the_picture() -> None:
    runner = DiffusionRunner.of(demo())
    texts = (
        "a red circle on a blue background",
        "a (red:1.4) circle on a blue background",
        "a [red:green:0.3] circle on a blue background",
    )
    plain, weighted, edited = (run_alone(runner, spec(prompt=text, seed=1, steps=16)) for text in texts)
    assert (plain != weighted).any()
    assert (seen(plain)[0], seen(edited)[0]) == ("red", "green")


def test_another_vae_decodes_what_it_is_asked_to(tmp_path: Path) -> None:
    """The checkpoint's own VAE, its last layer's colours turned round, as a file of its own."""
    weights = {name: tensor.clone() for name, tensor in demo().vae.state_dict().items()}
    weights["decoder.conv_out.weight"], weights["decoder.conv_out.bias"] = (
        -weights["decoder.conv_out.weight"],
        -weights["decoder.conv_out.bias"],
    )
    save_file(weights, tmp_path / "negative.safetensors")
    shelves = Shelves.at(vaes=tmp_path, context_width=adapters.WIDTH)
    runner = DiffusionRunner.of(demo(), ExtraWeights.at(shelves, memory_bytes=0))
    plain, negative = (run_alone(runner, spec(seed=1, vae=vae)).astype(int) for vae in (None, "negative"))
    assert np.abs(plain + negative - 255).max() <= 1


@pytest.mark.parametrize(
    "wanted",
    [
        spec(),
        spec(**EULER_A),
        spec(negative_prompt="blurry, text"),
        spec(schedule=Schedule.UNIFORM, width=192, steps=5),
        spec(guidance_scale=1.0, steps=5),
    ],
)
def test_alone_equals_diffusers_own_pipeline(wanted: ImageSpec) -> None:
    checkpoint, first = demo(), wanted.passes[0]
    config = checkpoint.scheduler_config
    scheduler = (
        EulerAncestralDiscreteScheduler.from_config(config, **EVENLY)
        if first.sampler is Sampler.EULER_A
        else DPMSolverMultistepScheduler.from_config(
            config, use_karras_sigmas=first.schedule is Schedule.KARRAS, **EVENLY
        )
    )
    pipeline: Any = StableDiffusionPipeline(
        vae=checkpoint.vae,
        text_encoder=checkpoint.text_encoder,
        tokenizer=checkpoint.tokenizer,
        unet=checkpoint.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        first.prompt,
        negative_prompt=first.negative_prompt,
        height=first.height,
        width=first.width,
        num_inference_steps=first.steps,
        guidance_scale=first.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(wanted.seed),
        output_type="np",
    ).images[0]
    ours = run_alone(DiffusionRunner.of(checkpoint), wanted)
    assert np.abs(theirs * 255 - ours).max() <= 1.0


class Hungry(torch.nn.Module):
    """A UNet that runs out of memory in the middle, holding what it had computed so far."""

    def __init__(self) -> None:
        super().__init__()
        self.config = demo().unet.config
        self.held: list[weakref.ref[torch.Tensor]] = []

    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        activations = x * 2
        self.held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("no more")


def test_running_out_of_memory_lets_go_of_the_failed_call() -> None:
    """A future keeps its error for as long as the job wants it; the error must not keep the call's tensors."""
    hungry = Hungry()
    runner = DiffusionRunner.of(replace(demo(), unet=hungry))
    image = runner.prepare(runner.draft(spec(steps=2, width=64, height=64))).result()
    with pytest.raises(OutOfMemory) as kept:
        runner.denoise([image])
    assert kept.value.retryable
    assert [held() for held in hungry.held] == [None]
    assert image.steps_done == 0


def test_running_out_of_memory_while_an_image_is_made_ready_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRAs are mixed on the device by whoever submits; a shortage is worth another try, and no reason to doubt the worker."""

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(Mix, "of", full)
    with studio.running(DiffusionRunner.of(demo())) as engine, pytest.raises(OutOfMemory):
        engine.submit(spec()).result(LIMIT_S)


def test_every_seed_is_another_picture() -> None:
    runner = DiffusionRunner.of(demo())
    first, second = (run_alone(runner, spec(steps=2, width=64, height=64, seed=seed)) for seed in (1, 2))
    assert (first != second).any()
