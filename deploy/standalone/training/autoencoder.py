"""Train the VAE: 8 times smaller sides, 4 channels, on 64 px pictures and on close-ups of larger ones.

Afterwards each latent channel has zero mean and unit variance under SD1.5's usual scale factor.
"""

import logging
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn

from deploy.standalone.training.networks import LATENT_SCALE, autoencoder
from deploy.standalone.training.shapes import close_up, dice, picture, random_scene
from deploy.standalone.training.workspace import Workspace, until_spent

SIDE_PX, BATCH = 64, 32
MINUTES = 10.0
RATE, WARM_UP_STEPS = 4e-3, 40
CLOSE_UP_SHARE = 0.4
LATENT_NOISE = 0.08  # of a channel's spread; makes the decoder forgiving
AVERAGE_OVER_STEPS = 100
LOG_VARIANCE = -8.0  # of the published encoder: as good as none
REPORT_EVERY = 50

log = logging.getLogger(__name__)


class AutoencoderTrainer:
    """One training run of a VAE, a step at a time. `average` is the running average of its weights."""

    def __init__(self, vae: Any, rng: random.Random, device: torch.device, *, batch: int = BATCH) -> None:
        self.vae = vae.to(device, memory_format=torch.channels_last)
        self.weights = [weight for weight in vae.parameters() if weight.requires_grad]
        self.average = [weight.detach().clone() for weight in self.weights]
        self.steps = 0
        self._rng, self._device, self._batch = rng, device, batch
        self._optimizer = torch.optim.AdamW(self.weights, lr=RATE, weight_decay=1e-4, betas=(0.9, 0.98))

    def step(self, spent: float) -> float:
        """Take one training step on a batch; return its mean squared error. `spent` is the share of the time budget used."""
        self._optimizer.param_groups[0]["lr"] = _rate(self.steps, spent)
        pixels = batch(self._rng, self._batch, SIDE_PX).to(self._device)
        mean = self.vae.encode(pixels).latent_dist.mean
        noise = LATENT_NOISE * mean.detach().std((0, 2, 3), keepdim=True) * torch.randn_like(mean)
        error = self.vae.decode(mean + noise).sample - pixels
        self._learn(_loss(error) + 1e-4 * mean.square().mean())
        return float(error.detach().square().mean())

    @torch.no_grad()
    def use_average(self) -> None:
        """Replace the weights by their running average."""
        for weight, average in zip(self.weights, self.average, strict=True):
            weight.copy_(average)

    def _learn(self, loss: Tensor) -> None:
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self._optimizer.step()
        self.steps += 1
        with torch.no_grad():
            for average, weight in zip(self.average, self.weights, strict=True):
                average.lerp_(weight, max(1 / AVERAGE_OVER_STEPS, 9 / (self.steps + 9)))


def train(space: Workspace, minutes: float = MINUTES) -> None:
    """Train a VAE from nothing and leave it in the workspace."""
    torch.manual_seed(0)
    trainer = AutoencoderTrainer(autoencoder(), dice(1), space.device)
    errors = []
    for spent in until_spent(60 * minutes * space.effort):
        errors.append(trainer.step(spent))
        if trainer.steps % REPORT_EVERY == 0:
            log.info("vae: step %d, %.1f dB", trainer.steps, decibels(float(np.mean(errors[-REPORT_EVERY:]))))
    log.info("vae: done after %d steps, %.1f dB", trainer.steps, decibels(float(np.mean(errors[-REPORT_EVERY:]))))
    trainer.use_average()
    rng = dice(2)
    standardize(trainer.vae, torch.cat([batch(rng, 64, SIDE_PX) for _ in range(6)]).to(space.device))
    for side_px in (64, 128, 256):
        log.info("vae: %d px, %.1f dB", side_px, quality(trainer.vae, batch(rng, 4, side_px).to(space.device)))
    trainer.vae.save_pretrained(space.vae_dir)


def load(space: Workspace) -> Any:
    """Return the trained VAE, ready to encode."""
    vae = AutoencoderKL.from_pretrained(space.vae_dir, use_safetensors=True, local_files_only=True)
    return vae.eval().requires_grad_(False).to(space.device, memory_format=torch.channels_last)


def batch(rng: random.Random, count: int, side_px: int) -> Tensor:
    """Draw pictures and close-ups."""
    kinds = [close_up if rng.random() < CLOSE_UP_SHARE else picture for _ in range(count)]
    return as_pixels([kind(random_scene(rng), side_px, rng) for kind in kinds])


def as_pixels(images: Sequence[Image.Image]) -> Tensor:
    """Convert pictures to the VAE's input, (pictures, 3, height, width) from -1 to 1."""
    stacked = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return stacked.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def standardize(vae: Any, pixels: Tensor) -> None:
    """Fold a change of scale and origin of the latents into the two 1x1 convolutions that meet there."""
    means = vae.encode(pixels).latent_dist.mean
    origin, stretch = means.mean((0, 2, 3)), 1 / (LATENT_SCALE * means.std((0, 2, 3)))
    into, out_of = vae.quant_conv, vae.post_quant_conv
    into.weight[:4] *= stretch.view(4, 1, 1, 1)
    into.bias[:4] = (into.bias[:4] - origin) * stretch
    into.weight[4:] = 0
    into.bias[4:] = LOG_VARIANCE
    out_of.bias += out_of.weight[:, :, 0, 0] @ origin
    out_of.weight /= stretch.view(1, 4, 1, 1)


@torch.no_grad()
def quality(vae: Any, pixels: Tensor) -> float:
    """Return the PSNR of encoded and decoded pictures, in dB."""
    restored = vae.decode(vae.encode(pixels).latent_dist.mean).sample
    return decibels(float((restored - pixels).square().mean()))


def decibels(mean_square_error: float) -> float:
    """Return the peak signal-to-noise ratio of pixels from -1 to 1."""
    return 10 * math.log10(4 / mean_square_error)


def _rate(step: int, spent: float) -> float:
    return RATE * min(1.0, (step + 1) / WARM_UP_STEPS) * (0.5 * (1 + math.cos(math.pi * spent)) + 0.01)


def _loss(error: Tensor) -> Tensor:
    """Return the loss: the error of pixels and of their edges."""
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + error.square().mean() + 0.5 * edges
