"""Workspace of a training run: the files that steps hand to each other, the device and the time budget.

Tensors are stored as safetensors with their facts as JSON in the header; nothing is ever unpickled.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folder of one training run. `effort` scales every time budget and the number of pictures drawn ahead."""

    folder: Path
    device: torch.device
    effort: float = 1.0

    @property
    def vae_dir(self) -> Path:
        """The trained VAE, as diffusers saves it."""
        return self.folder / "vae"

    def latents_file(self, side_px: int) -> Path:
        """Return the path of one size's latents and scenes."""
        return self.folder / f"latents-{side_px}.safetensors"

    def denoiser_file(self, stage: str) -> Path:
        """Return the path of a stage's text encoder and UNet."""
        return self.folder / f"denoiser-{stage}.safetensors"

    def autocast(self) -> torch.autocast:
        """Autocast to bf16 within the block."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Store tensors and facts; the file is replaced atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    save_file({name: t.contiguous() for name, t in tensors.items()}, unfinished, {"facts": json.dumps(facts)})
    unfinished.chmod(0o644)  # safetensors writes for the owner alone
    unfinished.replace(path)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and facts of a file."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, _facts(file)  # noqa: SIM118 - not a mapping


def read_facts(path: Path) -> dict[str, Any]:
    """Read only the facts."""
    with safe_open(path, framework="pt") as file:
        return _facts(file)


def until_spent(seconds: float, now: Callable[[], float] = time.monotonic) -> Iterator[float]:
    """Yield the used share of a time budget, from 0, until it is used up; at least once."""
    begun, share = now(), 0.0
    while share < 1:
        yield share
        share = (now() - begun) / seconds


def _facts(file: Any) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(file.metadata()["facts"])
    return facts
