"""The torch side of the engine: one resident checkpoint, and images between their steps."""

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
    """One image between steps. `x` is (1, 4, height/8, width/8) float32; `context` is (samples, tokens, width)."""

    x: Tensor
    context: Tensor
    guidance_scale: float
    sampler: Any
    generator: torch.Generator
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


class DiffusionRunner:
    """Renders images of one checkpoint, many at a time."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._prompts = conditioning.PromptEncoder(checkpoint)

    @torch.inference_mode()
    def prepare(self, spec: ImageSpec) -> Latents:
        """Encode the prompt, set up the sampler, draw the first noise.

        The generator lives on the CPU and belongs to the image: a seed gives the same noise on every device, in every batch.
        """
        with _memory_errors():
            device = self._checkpoint.device
            sampler = samplers.make(spec.sampler, spec.schedule, spec.steps, self._checkpoint.scheduler_config)
            generator = torch.Generator("cpu").manual_seed(spec.seed)
            x = noise.initial(generator, width=spec.width, height=spec.height) * sampler.init_noise_sigma
            context = self._prompts.encode(spec.prompt, spec.negative_prompt if spec.guidance_scale > 1 else None)
            return Latents(x.to(device), context, spec.guidance_scale, sampler, generator)

    @torch.inference_mode()
    def denoise(self, batch: Sequence[Latents]) -> None:
        """Make one UNet call for all images of a bucket and step each with its own sampler."""
        with _memory_errors():
            predictions = self._predict(batch).split([image.samples for image in batch])
        for image, prediction in zip(batch, predictions, strict=True):
            image.x = samplers.step(
                image.sampler, guided(prediction, image.guidance_scale), image.timestep, image.x, image.generator
            )
            image.steps_done += 1

    @torch.inference_mode()
    def decode(self, denoised: Latents) -> Pixels:
        """Decode one finished image."""
        with _memory_errors():
            return vae.decode(self._checkpoint, denoised.x)

    def _predict(self, batch: Sequence[Latents]) -> Tensor:
        """Return the UNet's noise predictions, (samples of all images, 4, height/8, width/8) float32."""
        unet, device, dtype = self._checkpoint.unet, self._checkpoint.device, self._checkpoint.dtype
        x = torch.cat([_scaled(image).expand(image.samples, -1, -1, -1) for image in batch])
        # A float tensor on the device: a Python number would cost a synchronisation, and some samplers have fractional steps.
        timesteps = torch.tensor(
            [float(image.timestep) for image in batch for _ in range(image.samples)], dtype=torch.float32, device=device
        )
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


@contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise OutOfMemory from error
