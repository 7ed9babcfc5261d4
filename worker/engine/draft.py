"""Draft of an image: the host's share of its preparation, done at once on the submitting thread.

The draft reads prompts, loads weights, plans the steps and draws the noise; it neither waits for the device nor shares state with
other images. `preparation.py` is the device's share, advanced by the engine's thread.
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
from worker.diffusion.transfer import pinned
from worker.diffusion.vae import VaeShelf
from worker.engine.request import ImageSpec, Pass, Start


@dataclass(frozen=True, slots=True)
class PassDraft:
    """A `Pass` with all that the host can compute of it.

    All noise is unit noise, (1, 4, height/8, width/8), `fresh` (calls, 1, 4, height/8, width/8): `noise` is the latents' at the
    start, `fresh` the sampler's, `posterior` the encoder's for the picture to start from and `masked_posterior` for its unmasked
    part; None where the pass needs none. Prompt editing counts steps from the first call, `steps_skipped` into the schedule.
    """

    spec: Pass
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
    """All that the host can compute of an image."""

    seed: int
    passes: tuple[PassDraft, ...]
    start: Start | None
    vae: Any

    @property
    def steps_total(self) -> int:
        """UNet calls over all passes."""
        return sum(len(one.plan.calls) for one in self.passes)


@dataclass(frozen=True, slots=True)
class Library:
    """The LoRAs, VAEs and embeddings that images may name."""

    loras: LoraShelf
    vaes: VaeShelf
    embeddings: Embeddings | None

    @classmethod
    def empty(cls, checkpoint: LoadedCheckpoint) -> "Library":
        """Return a library without any weights."""
        return cls.at(checkpoint, Shelves.at(), memory_bytes=0)

    @classmethod
    def at(cls, checkpoint: LoadedCheckpoint, shelves: Shelves, *, memory_bytes: int) -> "Library":
        """Open a library over folders; it keeps at most `memory_bytes` of LoRAs loaded."""
        width = checkpoint.text_encoder.config.hidden_size
        folder = shelves.embeddings.folder
        return cls(
            LoraShelf(shelves.loras, checkpoint, memory_bytes=memory_bytes),
            VaeShelf(shelves.vaes, checkpoint),
            Embeddings(folder, width) if folder else None,
        )


class Drafter:
    """Makes drafts for one checkpoint. Thread-safe."""

    def __init__(self, checkpoint: LoadedCheckpoint, library: Library) -> None:
        self._checkpoint = checkpoint
        self._library = library
        self._reader = PromptReader()

    def draft(self, spec: ImageSpec) -> ImageDraft:
        """Draft an image. Raises a `FarmError` that names missing or broken weights."""
        vae = self._library.vaes.get(spec.vae) if spec.vae else self._checkpoint.vae
        passes = tuple(self._draft_pass(spec, index) for index in range(len(spec.passes)))
        return ImageDraft(spec.seed, passes, spec.start, vae)

    def _draft_pass(self, spec: ImageSpec, index: int) -> PassDraft:
        pass_spec = spec.passes[index]
        plan = plans.make(
            pass_spec.sampler,
            pass_spec.schedule,
            pass_spec.steps,
            self._checkpoint.scheduler_config,
            last=pass_spec.last,
        )
        # A1111's rule: the second pass counts its own steps, an image-to-image pass those of the whole schedule.
        skipped = pass_spec.steps - pass_spec.last if index and pass_spec.last else 0
        script = self._reader.read(
            pass_spec.prompt,
            pass_spec.negative_prompt if pass_spec.guidance_scale > 1 else None,
            steps=pass_spec.steps - skipped,
            clip_skip=spec.clip_skip,
            first_pass_steps=spec.passes[0].steps if index else None,
            embeddings=self._library.embeddings.rescan() if self._library.embeddings else (),
        )
        unet_mix, text_mix = self._mixes(pass_spec.loras)
        # The order of the draws is diffusers': the encoder's, the start's, the masked picture's, the sampler's.
        noise = Noise(spec.seed, width=pass_spec.width, height=pass_spec.height)
        device = self._checkpoint.device
        starts_from_pixels = spec.start is not None if index == 0 else pass_spec.is_enlarged_in_pixels
        posterior = noise.unit() if starts_from_pixels else None
        first = noise.first(spec.variation_seed, spec.variation_strength)
        masked = noise.unit() if self._checkpoint.is_inpainting and spec.start is not None and index == 0 else None
        fresh = noise.fresh(plan)
        posterior, masked = (None if one is None else pinned(one, device) for one in (posterior, masked))
        fresh = pinned(fresh, device) if isinstance(fresh, Tensor) else fresh
        return PassDraft(
            pass_spec, plan, skipped, script, unet_mix, text_mix, pinned(first, device), fresh, posterior, masked
        )

    def _mixes(self, loras: tuple[Lora, ...]) -> tuple[Mix | None, Mix | None]:
        """Return the mixes of LoRAs for the UNet and for the text encoder; None where no LoRA has a weight."""
        pairs = [(self._library.loras.get(lora.name), lora) for lora in loras]
        unet = Mix.of((loaded, lora.weight) for loaded, lora in pairs)
        text = Mix.of((loaded, lora.text_encoder_weight) for loaded, lora in pairs)
        return unet, text
