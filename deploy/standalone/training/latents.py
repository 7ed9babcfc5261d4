"""Latents encoded ahead: training the denoiser needs only the latents of pictures and their scenes.

A stored set belongs to one VAE; it is drawn and encoded again when the VAE is trained again.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from deploy.standalone.training import autoencoder
from deploy.standalone.training.shapes import Scene, dice, picture, random_scene
from deploy.standalone.training.workspace import Workspace, read, read_facts, write

# How many pictures are drawn of each size.
PICTURES: Mapping[int, int] = MappingProxyType({64: 9000, 128: 4000, 256: 3000, 512: 1200})
PIXELS_AT_ONCE = 64 * 64 * 64

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LatentSet:
    """The latents of pictures of one size, (pictures, 4, side, side) in fp16 at unit variance, and their scenes."""

    side_px: int
    latents: Tensor
    scenes: tuple[Scene, ...]


def of_size(space: Workspace, side_px: int) -> LatentSet:
    """Return the latents of one size from the workspace, drawn and encoded at the first call."""
    path, count = space.latents_file(side_px), max(64, round(PICTURES[side_px] * space.effort))
    origin = {"vae": _fingerprint(space), "count": count}
    if not path.exists() or read_facts(path)["origin"] != origin:
        log.info("latents: drawing %d pictures of %d px", count, side_px)
        fresh = draw(autoencoder.load(space), side_px, count, space.device)
        write(path, {"latents": fresh.latents}, {"origin": origin, "scenes": [asdict(s) for s in fresh.scenes]})
    tensors, facts = read(path)
    return LatentSet(side_px, tensors["latents"], tuple(Scene(**scene) for scene in facts["scenes"]))


def draw(vae: Any, side_px: int, count: int, device: torch.device) -> LatentSet:
    """Draw scenes that training may show and encode their pictures."""
    rng = dice(side_px)
    scenes = [random_scene(rng) for _ in range(count)]
    encoded = [
        encode(vae, autoencoder.as_pixels([picture(scene, side_px, rng) for scene in some]).to(device))
        for some in _in_groups(scenes, max(1, PIXELS_AT_ONCE // side_px**2))
    ]
    return LatentSet(side_px, torch.cat(encoded), tuple(scenes))


@torch.no_grad()
def encode(vae: Any, pixels: Tensor) -> Tensor:
    """Return the latents of pictures at the UNet's scale, without noise."""
    means: Tensor = vae.encode(pixels).latent_dist.mean
    scale: float = vae.config.scaling_factor
    return (means * scale).half().cpu()


def _fingerprint(space: Workspace) -> str:
    weights = (space.vae_dir / "diffusion_pytorch_model.safetensors").read_bytes()
    return hashlib.sha256(weights).hexdigest()


def _in_groups(scenes: list[Scene], size: int) -> Iterator[list[Scene]]:
    for start in range(0, len(scenes), size):
        yield scenes[start : start + size]
