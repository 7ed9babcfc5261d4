"""What an image needs before the device sees it, made on the thread that asks.

Prompts are read, weights loaded, steps planned, noise drawn. Nothing here waits for the device or is seen by another image.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from shared.files.weights import Shelves
from shared.vocabulary.params import Lora
from worker.diffusion import plan as plans
from worker.diffusion.checkpoint_loader import LoadedCheckpoint
from worker.diffusion.conditioning import PromptReader, Script
from worker.diffusion.lora import LoraShelf, Mix
from worker.diffusion.noise import FreshNoise, Noise
from worker.diffusion.plan import Plan
from worker.diffusion.textual_inversion import Embeddings
from worker.diffusion.transfer import staged
from worker.diffusion.vae import VaeShelf
from worker.engine.request import ImageSpec, Pass, Start


@dataclass(frozen=True, slots=True)
class PreparedPass:
    """A pass made ready. All noise is unit noise, (1, 4, height/8, width/8), `fresh` (calls, 1, 4, height/8, width/8).

    `steps_skipped` of the plan's schedule come before its first call and do not count in prompts that change from step to step.
    `posterior` and `masked_posterior` are for encoding the picture to start from, and its unmasked part; None without one.
    """

    wanted: Pass
    plan: Plan
    steps_skipped: int
    script: Script
    unet_mix: Mix | None
    text_mix: Mix | None
    noise: Tensor
    fresh: Tensor | FreshNoise | None
    posterior: Tensor | None
    masked_posterior: Tensor | None


@dataclass(frozen=True, slots=True)
class ImageDraft:
    """An image as far as it can be made ready without the device."""

    seed: int
    legs: tuple[PreparedPass, ...]
    start: Start | None
    vae: Any

    @property
    def steps_total(self) -> int:
        """UNet calls over all passes."""
        return sum(len(leg.plan.calls) for leg in self.legs)


@dataclass(frozen=True, slots=True)
class Library:
    """Weights that images may name beside the checkpoint's own."""

    loras: LoraShelf
    vaes: VaeShelf
    embeddings: Embeddings | None

    @classmethod
    def empty(cls, checkpoint: LoadedCheckpoint) -> "Library":
        """Return a library with nothing in it."""
        return cls.at(checkpoint, Shelves.at(), memory_bytes=0)

    @classmethod
    def at(cls, checkpoint: LoadedCheckpoint, shelves: Shelves, *, memory_bytes: int) -> "Library":
        """Open a library over folders; loaded LoRAs keep to `memory_bytes`."""
        width = checkpoint.text_encoder.config.hidden_size
        folder = shelves.embeddings.folder
        return cls(
            LoraShelf(shelves.loras, checkpoint, memory_bytes=memory_bytes),
            VaeShelf(shelves.vaes, checkpoint),
            Embeddings(folder, width) if folder else None,
        )


class Drafter:
    """Makes drafts for one checkpoint. Any number of threads may call it at once."""

    def __init__(self, checkpoint: LoadedCheckpoint, library: Library) -> None:
        self._checkpoint = checkpoint
        self._library = library
        self._reader = PromptReader()

    def draft(self, spec: ImageSpec) -> ImageDraft:
        """Make an image ready. Raises a `FarmError` that says which weights are missing or broken."""
        vae = self._library.vaes.get(spec.vae) if spec.vae else self._checkpoint.vae
        legs = tuple(self._leg(spec, index) for index in range(len(spec.passes)))
        return ImageDraft(spec.seed, legs, spec.start, vae)

    def _leg(self, spec: ImageSpec, index: int) -> PreparedPass:
        wanted = spec.passes[index]
        plan = plans.make(
            wanted.sampler, wanted.schedule, wanted.steps, self._checkpoint.scheduler_config, last=wanted.last
        )
        # A1111's rule: the second pass counts its own steps, an image-to-image pass those of the whole schedule.
        skipped = wanted.steps - wanted.last if index and wanted.last else 0
        script = self._reader.read(
            wanted.prompt,
            wanted.negative_prompt if wanted.guidance_scale > 1 else None,
            steps=wanted.steps - skipped,
            clip_skip=spec.clip_skip,
            first_pass_steps=spec.passes[0].steps if index else None,
            embeddings=self._library.embeddings.rescan() if self._library.embeddings else (),
        )
        unet_mix, text_mix = self._mixes(wanted.loras)
        # The order of the draws is diffusers': the encoder's, the start's, the masked picture's, the sampler's.
        noise = Noise(spec.seed, width=wanted.width, height=wanted.height)
        device = self._checkpoint.device
        starts_from_pixels = spec.start is not None if index == 0 else wanted.is_enlarged_in_pixels
        posterior = noise.unit() if starts_from_pixels else None
        first = noise.first(spec.variation_seed, spec.variation_strength)
        masked = noise.unit() if self._checkpoint.is_inpainting and spec.start is not None and index == 0 else None
        fresh = noise.fresh(plan)
        posterior, masked = (None if one is None else staged(one, device) for one in (posterior, masked))
        fresh = staged(fresh, device) if isinstance(fresh, Tensor) else fresh
        return PreparedPass(
            wanted, plan, skipped, script, unet_mix, text_mix, staged(first, device), fresh, posterior, masked
        )

    def _mixes(self, wanted: tuple[Lora, ...]) -> tuple[Mix | None, Mix | None]:
        """Return what the LoRAs do to the UNet and to the text encoder; None for nothing."""
        loaded = [(self._library.loras.get(lora.name), lora) for lora in wanted]
        unet = Mix.of((lora, use.weight) for lora, use in loaded)
        text = Mix.of((lora, use.text_encoder_weight) for lora, use in loaded)
        return unet, text
