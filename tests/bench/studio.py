"""Checkpoints of the benchmark: the demo, and one of SD1.5's full size with random weights, which costs the same to compute."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from shared.files import checkpoints
from shared.vocabulary.prompt_reader import CLIP_DIR
from tests.bench.measure import Setting
from worker.diffusion import checkpoint_loader, division
from worker.diffusion.checkpoint_loader import SD15_DIR, LoadedCheckpoint
from worker.engine.profile import is_faster_channels_last

DEMO = Path(__file__).parents[2] / "deploy/standalone/checkpoints/farm-demo.safetensors"


def subjects(device: torch.device, *, quick: bool) -> Iterator[tuple[str, LoadedCheckpoint, list[Setting]]]:
    """Return each checkpoint with the settings it is measured at: on a GPU at real sizes, on a CPU at small ones."""
    if device.type == "cuda":
        large = [] if quick else [Setting(side=768, steps=20, clients=16, images=32)]
        checkpoint = full_size(device, torch.float16)
        order = "usual order"
        if is_faster_channels_last(checkpoint):  # as a worker finds out
            checkpoint.unet.to(memory_format=torch.channels_last)
            order = "channels-last"
        yield (
            f"full-size random fp16 {order}",
            checkpoint,
            [
                Setting(side=512, steps=20, clients=32, images=64, compiled=True, share=1.0 if quick else 0.7),
                *large,
            ],
        )
        return
    demo = checkpoint_loader.load(checkpoints.inspect(DEMO), device, torch.float32)
    images = 4 if quick else 12
    yield "farm-demo", demo, [Setting(side=256, steps=20, clients=4, images=images)]
    if not quick:
        yield (
            "full-size random fp32",
            full_size(device, torch.float32),
            [Setting(side=64, steps=3, clients=2, images=2, repeats=2, batches=(1, 2, 4))],
        )


def full_size(device: torch.device, dtype: torch.dtype) -> LoadedCheckpoint:
    """Build SD1.5 of random weights. Nothing is read from disk but configs and the tokenizer."""
    torch.manual_seed(0)
    text_config = CLIPTextConfig.from_pretrained(SD15_DIR / "text_encoder", local_files_only=True)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # never in full precision first: that would not fit where half does
    try:
        with torch.device(device):
            parts = [
                UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(SD15_DIR / "unet")),
                AutoencoderKL.from_config(AutoencoderKL.load_config(SD15_DIR / "vae")),
                CLIPTextModel(text_config),
            ]
    finally:
        torch.set_default_dtype(usual)
    unet, vae, text_encoder = (part.to(device, dtype).eval().requires_grad_(False) for part in parts)
    for part in (unet, vae):
        division.leave_out(part)
    return LoadedCheckpoint(
        name="full-size",
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(CLIP_DIR, local_files_only=True),
        scheduler_config=json.loads((SD15_DIR / "scheduler" / "scheduler_config.json").read_bytes()),
        device=device,
        dtype=dtype,
    )
