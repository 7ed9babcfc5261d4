"""The demo checkpoint, specs to start from, and engines on it."""

import copy
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from shared.files import checkpoints
from shared.vocabulary.samplers import Sampler, Schedule
from tests.support.ceiling import Ceiling
from worker.diffusion import checkpoint_loader
from worker.diffusion.checkpoint_loader import LoadedCheckpoint
from worker.engine.draft import ImageDraft
from worker.engine.engine import Engine
from worker.engine.latents import Latents
from worker.engine.request import ImageSpec, Pass
from worker.engine.runner import DiffusionRunner

DEMO = Path(__file__).parents[2] / "deploy/standalone/checkpoints/farm-demo.safetensors"
CPU = torch.device("cpu")
UNET_INPUT = "model.diffusion_model.input_blocks.0.0.weight"

DemoEngine = Engine[ImageDraft, Latents]

PASS = Pass(
    prompt="a red circle on a blue background",
    negative_prompt="",
    width=128,
    height=128,
    steps=12,
    guidance_scale=7.0,
    sampler=Sampler.DPMPP_2M,
    schedule=Schedule.KARRAS,
)


@cache
def demo() -> LoadedCheckpoint:
    """The demo checkpoint in fp32 on the CPU, loaded once per run; whoever changes it must work on a copy."""
    return checkpoint_loader.load(checkpoints.inspect(DEMO), CPU, torch.float32)


def doubled(checkpoint: LoadedCheckpoint) -> LoadedCheckpoint:
    """Return a copy in float64, to be run under `walking.DoublePrecision`."""
    parts = {part: copy.deepcopy(getattr(checkpoint, part)).double() for part in ("unet", "vae", "text_encoder")}
    return replace(checkpoint, dtype=torch.float64, **parts)


@cache
def small() -> LoadedCheckpoint:
    """The demo checkpoint with a UNet of few layers and random weights: its pictures show nothing, and it is traced soon."""
    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=demo().unet.config.cross_attention_dim,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    return replace(demo(), unet=unet.eval().requires_grad_(False))


def widened(tmp_path: Path, mask_weight: float, device: torch.device = CPU) -> LoadedCheckpoint:
    """Write and load the demo with inputs for a mask and a masked picture; the mask's are all `mask_weight`."""
    weights = load_file(DEMO)
    four = weights[UNET_INPUT]
    extra = four.new_zeros(four.shape[0], 5, *four.shape[2:])
    extra[:, 0] = mask_weight
    weights[UNET_INPUT] = torch.cat([four, extra], dim=1)
    tmp_path.mkdir(exist_ok=True)
    path = tmp_path / "inpainting.safetensors"
    save_file(weights, path)
    shutil.copytree(DEMO.with_suffix(".config"), path.with_suffix(".config"))
    return checkpoint_loader.load(checkpoints.inspect(path), device, torch.float32)


def spec(*more_passes: Pass, seed: int = 42, **changes: Any) -> ImageSpec:
    """A txt2img image of 128 px; fields of the image and of its first pass are told apart by their names."""
    of_image = {name: changes.pop(name) for name in list(changes) if name in ImageSpec.__slots__}
    return ImageSpec(passes=(replace(PASS, **changes), *more_passes), seed=seed, **of_image)


@contextmanager
def running(runner: DiffusionRunner, *, samples: int = 16) -> Iterator[DemoEngine]:
    """An engine that works while the block lasts."""
    engine: DemoEngine = Engine(runner, limits=Ceiling(samples))
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


@contextmanager
def held(engine: DemoEngine, when: Callable[[], bool]) -> Iterator[Event]:
    """Hold an engine before its next step once `when` is true, while the block lasts; the event is set when it is held."""
    runner = engine._runner
    denoise = runner.denoise
    is_held, may_go = Event(), Event()

    def wait_and_denoise(batch: Sequence[Latents]) -> None:
        if when():
            is_held.set()
            may_go.wait()
        denoise(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "denoise", wait_and_denoise)
        try:
            yield is_held
        finally:
            may_go.set()
