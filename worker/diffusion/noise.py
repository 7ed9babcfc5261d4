"""The noise of an image, drawn before its first step and on the CPU: a seed means the same on every device, in every batch."""

import math

import torch
from torch import Tensor
from torchsde import BrownianTree

from worker.diffusion.plan import Plan

LATENT_CHANNELS = 4
PIXELS_PER_LATENT = 8
TREE_DIGITS = 6
PARALLEL = 0.9995  # cosine above which two noises are mixed straight instead of along the circle


class Noise:
    """The noise of one seed at one size, drawn in diffusers' order."""

    def __init__(self, seed: int, *, width: int, height: int) -> None:
        self._seed = seed
        self._shape = (1, LATENT_CHANNELS, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def unit(self) -> Tensor:
        """Draw the next unit noise, (1, 4, height/8, width/8) float32."""
        return torch.randn(self._shape, generator=self._generator, dtype=torch.float32)

    def first(self, variation_seed: int = 0, variation_strength: float = 0.0) -> Tensor:
        """Draw the noise to start from, turned towards a second seed's by the strength, 0 to 1."""
        own = self.unit()
        if variation_strength == 0:
            return own
        other = torch.Generator("cpu").manual_seed(variation_seed)
        return slerp(variation_strength, own, torch.randn(self._shape, generator=other, dtype=torch.float32))

    def fresh(self, plan: Plan) -> Tensor | None:
        """Draw all that a plan adds on its way, summed up by call: (calls, 1, 4, height/8, width/8). None for nothing."""
        if not plan.draws:
            return None
        draws = self._increments(plan) if plan.brownian else [self.unit() for _ in range(plan.draws)]
        fresh = torch.zeros(len(plan.calls), *self._shape)
        for call, total in zip(plan.calls, fresh, strict=True):
            for draw, weight in call.fresh:
                total.add_(draws[draw], alpha=weight)
        return fresh

    def _increments(self, plan: Plan) -> list[Tensor]:
        """Return a Brownian path's unit increments over the plan's pairs of sigmas, from a tree grown of the seed alone."""
        low, high = plan.sigma_range
        tree = BrownianTree(t0=low, w0=torch.zeros(self._shape), t1=high, entropy=self._seed)
        # The tree rounds its ends and warns of times beyond them.
        first, last = round(low, TREE_DIGITS), round(high, TREE_DIGITS)
        return [
            tree(max(min(pair), first), min(max(pair), last)) * (1 if pair[0] < pair[1] else -1) / _root_length(pair)
            for pair in plan.brownian
        ]


def slerp(share: float, low: Tensor, high: Tensor) -> Tensor:
    """Turn one noise towards another along the circle between them, column by column, as A1111 does."""
    cosine = (_unit_columns(low) * _unit_columns(high)).sum(2, keepdim=True)
    if cosine.mean() > PARALLEL:
        return low * share + high * (1 - share)
    angle = torch.acos(cosine)
    sine = torch.sin(angle)
    return (torch.sin((1 - share) * angle) * low + torch.sin(share * angle) * high) / sine


def _root_length(pair: tuple[float, float]) -> float:
    return math.sqrt(abs(pair[1] - pair[0]))


def _unit_columns(noise: Tensor) -> Tensor:
    return noise / noise.norm(dim=2, keepdim=True)
