"""Noise of an image, drawn on the CPU before its first step, so that a seed gives the same image on every device."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torchsde import BrownianTree

from worker.diffusion.plan import Plan

LATENT_CHANNELS = 4
PIXELS_PER_LATENT = 8
TREE_DIGITS = 6
FLOAT_BYTES = 4
DRAWN_AHEAD_BYTES = 64 * 2**20  # 512 px: any walk; 2048 px: 60 calls
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
        """Draw the noise to start from, interpolated (`slerp`) towards that of the variation seed by the strength, 0 to 1."""
        own = self.unit()
        if variation_strength == 0:
            return own
        other = torch.Generator("cpu").manual_seed(variation_seed)
        return slerp(variation_strength, own, torch.randn(self._shape, generator=other, dtype=torch.float32))

    def fresh(self, plan: Plan) -> "Tensor | FreshNoise | None":
        """Draw the fresh noise of all calls of a plan, (calls, 1, 4, height/8, width/8). None if the plan adds none.

        Beyond `DRAWN_AHEAD_BYTES` each call's noise is drawn at that call.
        """
        if not plan.draws:
            return None
        units = self._increments(plan) if plan.brownian else (self.unit() for _ in range(plan.draws))
        by_call = FreshNoise(plan, units, self._shape)
        if len(plan.calls) * math.prod(self._shape) * FLOAT_BYTES > DRAWN_AHEAD_BYTES:
            return by_call
        return torch.stack([by_call[call] for call in range(len(plan.calls))])

    def _increments(self, plan: Plan) -> Iterator[Tensor]:
        """Yield the unit increments of a Brownian path over the plan's pairs of sigmas; the seed alone decides the path."""
        low, high = plan.sigma_range
        tree = BrownianTree(t0=low, w0=torch.zeros(self._shape), t1=high, entropy=self._seed)
        # The tree rounds its ends and warns of times beyond them.
        first, last = round(low, TREE_DIGITS), round(high, TREE_DIGITS)
        for pair in plan.brownian:
            increment = tree(max(min(pair), first), min(max(pair), last)) / _root_length(pair)
            yield increment if pair[0] < pair[1] else -increment


class FreshNoise:
    """A plan's fresh noise, drawn call by call in order; the last call's may be read again, as after a lack of memory."""

    def __init__(self, plan: Plan, units: Iterator[Tensor], shape: tuple[int, ...]) -> None:
        self._plan = plan
        self._units = enumerate(units)
        self._shape = shape
        self._last: tuple[int, Tensor] | None = None

    def __getitem__(self, call: int) -> Tensor:
        """Return the noise that a call adds, (1, 4, height/8, width/8)."""
        if self._last is None or self._last[0] != call:
            self._last = call, self._sum(call)
        return self._last[1]

    def _sum(self, call: int) -> Tensor:
        total = torch.zeros(self._shape)
        for draw, weight in self._plan.calls[call].fresh:
            # Draws without weight are made all the same: the next ones follow from them.
            unit = next(unit for index, unit in self._units if index == draw)
            total.add_(unit, alpha=weight)
        return total


def slerp(share: float, low: Tensor, high: Tensor) -> Tensor:
    """Spherical linear interpolation between two noises, column by column, as A1111 does."""
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
