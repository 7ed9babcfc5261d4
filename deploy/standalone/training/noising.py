"""Noising of training latents: distribution of levels, offset noise, and loss weights per level. No networks."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deploy.standalone.training.networks import NOISE_LEVELS, noise_schedule

FLAT_NOISE, BLOTCHY_NOISE = 0.1, 0.15
LEAST_WEIGHT, MOST_WEIGHT = 0.25, 12.0


@dataclass(frozen=True, slots=True)
class Noised:
    """Latents, each noised to its own level, and the noise. `signal` is the picture's share of the variance."""

    latents: Tensor
    levels: Tensor
    noise: Tensor
    signal: Tensor

    @property
    def weight(self) -> Tensor:
        """How much each picture counts, SNR^-1/2: at the noisy end, where only the caption can tell, an even loss is blind."""
        return (self.signal / (1 - self.signal)).rsqrt().clamp(LEAST_WEIGHT, MOST_WEIGHT)


class Noiser:
    """Adds noise by SD1.5's schedule."""

    def __init__(self) -> None:
        self._signal: Tensor = noise_schedule().alphas_cumprod

    def noised(self, latents: Tensor, side_px: int, rng: random.Random) -> Noised:
        """Add noise to latents of pictures of a size."""
        levels = random_levels(len(latents), side_px)
        noise = training_noise(latents, side_px, rng)
        signal = self._signal[levels]
        share = signal.view(-1, 1, 1, 1)
        return Noised(share.sqrt() * latents + (1 - share).sqrt() * noise, levels, noise, signal)


def random_levels(count: int, side_px: int) -> Tensor:
    """Draw noise levels, more of them towards the noisy end, less so for large pictures."""
    even = torch.rand(count)
    noisy_share = 0.7 if side_px <= 128 else 0.55 if side_px == 256 else 0.45
    drawn = torch.where(torch.rand(count) < noisy_share, even.sqrt(), even)
    return (drawn * NOISE_LEVELS).long().clamp(0, NOISE_LEVELS - 1)


def training_noise(latents: Tensor, side_px: int, rng: random.Random) -> Tensor:
    """Draw noise with a little extra at low frequencies.

    SD's schedule lets the coarse layout shine through even at the last level, which sampling from pure noise never sees.
    """
    count, channels, *sides = latents.shape
    noise = torch.randn_like(latents) + FLAT_NOISE * _strengths(count) * torch.randn(count, channels, 1, 1)
    if side_px < 128:
        return noise
    cells = rng.choice((2, 4, 8) if side_px > 128 else (2, 4))
    blotches = nn.functional.interpolate(torch.randn(count, channels, cells, cells), size=sides, mode="bilinear")
    return noise + BLOTCHY_NOISE * _strengths(count) * blotches


def _strengths(count: int) -> Tensor:
    return torch.rand(count, 1, 1, 1)
