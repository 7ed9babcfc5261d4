"""LoRAs for the demo checkpoint, written as files in the ways that trainers write them."""

from collections.abc import Mapping
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from shared.files.weights import Kind, Shelves, WeightsFile, inspect
from tests.support.studio import demo

WIDTH = 48  # of the demo checkpoint's prompts
UNET_LAYERS = ("attn2.to_k", "attn2.to_v", "attn1.to_q", "attn1.to_out.0", "ff.net.0.proj")
SHAPES, GROUNDS, OTHERS = ("circle", "square", "star"), ("green", "white", "black"), ("yellow", "white", "black")
TEXT_LAYERS = ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1")


def random_lora(seed: int, *, rank: int = 4, strength: float = 0.1) -> dict[str, tuple[Tensor, Tensor]]:
    """Random deltas, (down, up) by `unet.PATH` or `text_encoder.PATH`, for some linear layers of both."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for side, ends in (("unet", UNET_LAYERS), ("text_encoder", TEXT_LAYERS)):
        for path, layer in getattr(demo(), side).named_modules():
            if path.endswith(ends):
                wide, narrow = layer.weight.shape
                down = torch.randn(rank, narrow, generator=generator) * strength
                found[f"{side}.{path}"] = (down, torch.randn(wide, rank, generator=generator) * strength)
    return found


def as_kohya(deltas: Mapping[str, tuple[Tensor, Tensor]], *, alpha: float) -> dict[str, Tensor]:
    """Spell as kohya's trainer does."""
    tensors: dict[str, Tensor] = {}
    for path, (down, up) in deltas.items():
        side, _, layer = path.partition(".")
        if side == "text_encoder":
            layer = "text_model." + layer.removeprefix("text_model.")
        stem = f"lora_{'unet' if side == 'unet' else 'te'}_{layer.replace('.', '_')}"
        tensors |= {
            f"{stem}.lora_down.weight": down,
            f"{stem}.lora_up.weight": up,
            f"{stem}.alpha": torch.tensor(alpha),
        }
    return tensors


def as_diffusers(deltas: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Spell as peft and diffusers do."""
    tensors: dict[str, Tensor] = {}
    for path, (down, up) in deltas.items():
        tensors |= {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}
    return tensors


def written(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> WeightsFile:
    """Write a LoRA and look at it as the catalog does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()},
        path,
        metadata=metadata or None,
    )
    return inspect(Kind.LORA, path, context_width=WIDTH)


def shelves(folder: Path) -> Shelves:
    """Folders with one LoRA, `one`, one embedding, `word`, and one VAE, `own`, for the demo checkpoint."""
    written(folder / "loras/one.safetensors", as_kohya(random_lora(1), alpha=4))
    for name, tensors in {
        "embeddings/word": {"emb_params": torch.full((2, WIDTH), 0.1)},
        "vaes/own": demo().vae.state_dict(),
    }.items():
        path = folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True)
        save_file(tensors, path)
    return Shelves.at(
        loras=folder / "loras", embeddings=folder / "embeddings", vaes=folder / "vaes", context_width=WIDTH
    )


def recoloring(color: str, becomes: str, *, rank: int = 16) -> dict[str, Tensor]:
    """A LoRA that makes the UNet's cross-attention read a shape of one colour as of another, and leaves other colours alone.

    A linear map of hidden states is fitted to pairs of prompts, cut to its largest parts and put before `to_k` and `to_v`.
    """
    known, wanted = [], []
    for shape, ground, other in product(SHAPES, GROUNDS, OTHERS):
        before = _states(f"a {color} {shape} on a {ground} background")
        after = _states(f"a {becomes} {shape} on a {ground} background")
        stays = _states(f"a {other} {shape} on a {ground} background")
        known += [before, stays]
        wanted += [after - before, torch.zeros_like(stays)]
    x, y = torch.cat(known).double(), torch.cat(wanted).double()
    ridge = 1e-2 * torch.eye(WIDTH, dtype=torch.float64)
    change = torch.linalg.solve(x.T @ x + ridge, x.T @ y).T.float()
    left, strength, right = torch.linalg.svd(change)
    tensors: dict[str, Tensor] = {}
    for path, layer in demo().unet.named_modules():
        if path.endswith(("attn2.to_k", "attn2.to_v")):
            stem = f"lora_unet_{path.replace('.', '_')}"
            tensors[f"{stem}.lora_down.weight"] = right[:rank]
            tensors[f"{stem}.lora_up.weight"] = layer.weight @ (left[:, :rank] * strength[:rank])
    return tensors


@torch.inference_mode()
def _states(prompt: str) -> Tensor:
    """The hidden states of a prompt's tokens, (77, width)."""
    tokenizer = demo().tokenizer
    ids = tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
    states: Tensor = demo().text_encoder(ids).last_hidden_state[0]
    return states.clone()
