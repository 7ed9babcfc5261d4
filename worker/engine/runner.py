"""The torch side of the engine: one resident checkpoint, and images between their steps."""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shared.errors import OutOfMemory
from worker.diffusion import conditioning, noise, samplers, vae
from worker.diffusion.checkpoint import Checkpoint
from worker.engine.request import ImageSpec, Pixels


@dataclass(slots=True)
class Latents:
    """One image between steps.

    `x` is (1, 4, height/8, width/8) float32 and `context` (samples, tokens, width), both on the device. `fresh_noise` is what the
    sampler will add, step by step, empty for one that adds none; it waits in host memory.
    """

    x: Tensor
    context: Tensor
    guidance_scale: float
    sampler: Any
    fresh_noise: Tensor
    steps_done: int = 0

    @property
    def bucket(self) -> tuple[int, ...]:
        """Latent size and prompt length: what must be equal to stack images."""
        return (*self.x.shape[2:], self.context.shape[1])

    @property
    def samples(self) -> int:
        """Rows of the UNet's batch."""
        return self.context.shape[0]

    @property
    def cost(self) -> float:
        """Latent pixels through the UNet."""
        return float(self.samples * self.x.shape[2] * self.x.shape[3])

    @property
    def steps_total(self) -> int:
        """UNet calls in all."""
        return len(self.sampler.timesteps)

    @property
    def timestep(self) -> Tensor:
        """Where on the noise schedule the next step is."""
        timestep: Tensor = self.sampler.timesteps[self.steps_done]
        return timestep

    def advance(self, prediction: Tensor) -> None:
        """Take the step that a guided prediction calls for."""
        fresh = None
        if len(self.fresh_noise):
            fresh = self.fresh_noise[self.steps_done].to(self.x.device, non_blocking=True)
        self.x = samplers.step(self.sampler, prediction, self.timestep, self.x, fresh)
        self.steps_done += 1


class DiffusionRunner:
    """Renders images of one checkpoint, many at a time."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._prompts = conditioning.PromptEncoder(checkpoint)

    @torch.inference_mode()
    def prepare(self, spec: ImageSpec) -> Latents:
        """Encode the prompt, set up the sampler, draw all the noise that the image will need."""
        with _memory_errors():
            device = self._checkpoint.device
            sampler = samplers.make(spec.sampler, spec.schedule, spec.steps, self._checkpoint.scheduler_config)
            first, fresh = noise.draw(
                spec.seed, width=spec.width, height=spec.height, fresh=samplers.noise_draws(sampler)
            )
            x = first * sampler.init_noise_sigma
            context = self._prompts.encode(spec.prompt, spec.negative_prompt if spec.guidance_scale > 1 else None)
            return Latents(x.to(device), context, spec.guidance_scale, sampler, _staged(fresh, device))

    @torch.inference_mode()
    def denoise(self, batch: Sequence[Latents]) -> None:
        """Make one UNet call for all images of a bucket and step each with its own sampler."""
        with _memory_errors():
            predictions = self._predict(batch).split([image.samples for image in batch])
        for image, prediction in zip(batch, predictions, strict=True):
            image.advance(guided(prediction, image.guidance_scale))

    @torch.inference_mode()
    def decode(self, denoised: Latents) -> Pixels:
        """Decode one finished image."""
        with _memory_errors():
            return vae.decode(self._checkpoint, denoised.x)

    def _predict(self, batch: Sequence[Latents]) -> Tensor:
        """Return the UNet's noise predictions, (samples of all images, 4, height/8, width/8) float32."""
        unet, device, dtype = self._checkpoint.unet, self._checkpoint.device, self._checkpoint.dtype
        x = torch.cat([_scaled(image).expand(image.samples, -1, -1, -1) for image in batch])
        # A float tensor, because some samplers have fractional steps; sent without waiting for the device to catch up.
        timesteps = torch.tensor([float(image.timestep) for image in batch for _ in range(image.samples)])
        timesteps = timesteps.to(device, torch.float32, non_blocking=True)
        context = torch.cat([image.context for image in batch])
        prediction: Tensor = unet(x.to(dtype), timesteps, encoder_hidden_states=context, return_dict=False)[0]
        return prediction.float()


def guided(prediction: Tensor, guidance_scale: float) -> Tensor:
    """Move away from the negative prompt's prediction (classifier-free guidance, arXiv:2207.12598)."""
    if prediction.shape[0] == 1:
        return prediction
    negative, positive = prediction.chunk(2)
    return negative + guidance_scale * (positive - negative)


def _scaled(image: Latents) -> Tensor:
    scaled: Tensor = image.sampler.scale_model_input(image.x, image.timestep)
    return scaled


def _staged(noise: Tensor, device: torch.device) -> Tensor:
    """Put noise where a copy to the device need not wait for it: in pinned memory."""
    return noise.pin_memory() if device.type == "cuda" and len(noise) else noise


@contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        # The traceback would keep the failed call's tensors alive for as long as someone holds the error.
        traceback.clear_frames(error.__traceback__)
        torch.cuda.empty_cache()
        raise OutOfMemory from error
