"""Draft of an image: the host's share of its preparation, done at once on the submitting thread.

The draft reads prompts, loads weights, plans the steps and draws the noise; it neither waits for the device nor shares state with
other images. `preparation.py` is the device's share, advanced by the engine's thread.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from shared.files.weights import Shelf, Shelves
from shared.vocabulary.params import Lora
from worker.diffusion import plan as plans
from worker.diffusion.checkpoint_loader import LoadedCheckpoint
from worker.diffusion.conditioning import PromptReader, Script
from worker.diffusion.lora import LoraShelf, Mix
from worker.diffusion.noise import FreshNoise, Noise
from worker.diffusion.plan import Plan
from worker.diffusion.textual_inversion import Embedding, Embeddings
from worker.diffusion.transfer import pinned
from worker.diffusion.vae import OwnVae, VaeShelf
from worker.engine.request import ImageSpec, Pass, Start
from worker.residency.residency import Opened, Residency
from worker.residency.weights import CheckpointWeights


@dataclass(frozen=True, slots=True)
class PassDraft:
    """A `Pass` with all that the host can compute of it.

    All noise is unit noise, (1, 4, height/8, width/8), `fresh` (calls, 1, 4, height/8, width/8): `noise` is the latents' at the
    start, `fresh` the sampler's, `posterior` the encoder's for the picture to start from and `masked_posterior` for its unmasked
    part; None where the pass needs none. Prompt editing counts steps from the first call, `steps_skipped` into the schedule.
    `vae` is named by the image; without one it is the checkpoint's.
    """

    spec: Pass
    opened: Opened
    vae: Any | None
    plan: Plan
    steps_skipped: int
    script: Script
    unet_mix: Mix | None
    text_mix: Mix | None
    noise: Tensor
    fresh: Tensor | FreshNoise | None
    posterior: Tensor | None
    masked_posterior: Tensor | None

    @property
    def weights(self) -> CheckpointWeights:
        """The weights that it is walked with."""
        return self.opened.weights

    @property
    def checkpoint(self) -> LoadedCheckpoint:
        """The modules that they will be in."""
        return self.opened.modules.loaded

    @property
    def vae_key(self) -> tuple[int, str]:
        """What tells the VAE in use from others, and its weights from those that the same modules have at other times."""
        return (
            (id(self.vae), "") if self.vae is not None else (id(self.checkpoint.vae), self.weights.parts["vae"].digest)
        )

    @property
    def vae_in_use(self) -> Any:
        """The VAE that encodes and decodes its pictures."""
        return self.checkpoint.vae if self.vae is None else self.vae


@dataclass(frozen=True, slots=True)
class ImageDraft:
    """All that the host can compute of an image."""

    seed: int
    passes: tuple[PassDraft, ...]
    start: Start | None

    @property
    def sha256s(self) -> Mapping[str, str | None]:
        """The digest of each checkpoint's file, by name."""
        return {one.weights.name: one.weights.sha256 or None for one in self.passes}

    @property
    def weights(self) -> str:
        """What tells the weights of all passes from others."""
        return " ".join(one.weights.sha256 or one.weights.digest for one in self.passes)

    @property
    def steps_total(self) -> int:
        """UNet calls over all passes."""
        return sum(len(one.plan.calls) for one in self.passes)


@dataclass(frozen=True, slots=True)
class ExtraWeights:
    """The LoRAs, VAEs and embeddings that images may name."""

    loras: LoraShelf
    vaes: VaeShelf
    embeddings: Shelf

    @classmethod
    def at(cls, shelves: Shelves, *, memory_bytes: int) -> "ExtraWeights":
        """Open the shelves; at most `memory_bytes` of LoRAs stay loaded."""
        loras = LoraShelf(shelves.loras, memory_bytes=memory_bytes)
        return cls(loras, VaeShelf(shelves.vaes), shelves.embeddings)


class Drafter:
    """Makes drafts. Thread-safe."""

    def __init__(self, residency: Residency, extras: ExtraWeights) -> None:
        self._residency = residency
        self._extras = extras
        self._reader = PromptReader()
        self._embeddings: dict[int, Embeddings] = {}

    def draft(self, spec: ImageSpec) -> ImageDraft:
        """Draft an image; its checkpoints are read, if need be. Raises a `FarmError` that names missing or broken weights."""
        names = [one.checkpoint or spec.checkpoint for one in spec.passes]
        opened = {name: self._residency.open(name) for name in dict.fromkeys(names)}
        passes = tuple(self._draft_pass(spec, index, opened[name]) for index, name in enumerate(names))
        return ImageDraft(spec.seed, passes, spec.start)

    def _draft_pass(self, spec: ImageSpec, index: int, opened: Opened) -> PassDraft:
        pass_spec, checkpoint = spec.passes[index], opened.modules.loaded
        plan = plans.make(
            pass_spec.sampler,
            pass_spec.schedule,
            pass_spec.steps,
            opened.weights.scheduler_config,
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
            embeddings=self._embeddings_of(checkpoint, pass_spec),
        )
        unet_mix, text_mix = self._mixes(pass_spec.loras, opened)
        # The order of the draws is diffusers': the encoder's, the start's, the masked picture's, the sampler's.
        noise = Noise(spec.seed, width=pass_spec.width, height=pass_spec.height)
        device = checkpoint.device
        starts_from_pixels = spec.start is not None if index == 0 else pass_spec.is_enlarged_in_pixels
        posterior = noise.unit() if starts_from_pixels else None
        first = noise.first(spec.variation_seed, spec.variation_strength)
        masked = noise.unit() if checkpoint.is_inpainting and spec.start is not None and index == 0 else None
        fresh = noise.fresh(plan)
        posterior, masked = (None if one is None else pinned(one, device) for one in (posterior, masked))
        fresh = pinned(fresh, device) if isinstance(fresh, Tensor) else fresh
        return PassDraft(
            spec=pass_spec,
            opened=opened,
            vae=self._vae(spec.vae, opened) if spec.vae else None,
            plan=plan,
            steps_skipped=skipped,
            script=script,
            unet_mix=unet_mix,
            text_mix=text_mix,
            noise=pinned(first, device),
            fresh=fresh,
            posterior=posterior,
            masked_posterior=masked,
        )

    def _vae(self, name: str, opened: Opened) -> Any:
        modules, digest = opened.modules, opened.weights.parts["vae"].digest
        own = OwnVae(digest, modules.architecture, partial(self._residency.vae, opened))
        return self._extras.vaes.get(name, modules.loaded, own)

    def _embeddings_of(self, checkpoint: LoadedCheckpoint, spec: Pass) -> tuple[Embedding, ...]:
        """Return the embeddings as wide as a checkpoint's prompts, and those that a pass names at hand."""
        shelf, width = self._extras.embeddings, int(checkpoint.text_encoder.config.hidden_size)
        embeddings = self._embeddings.setdefault(width, Embeddings(shelf.folder, width, shelf=shelf))
        return embeddings.rescan(spec.prompt, spec.negative_prompt)

    def _mixes(self, loras: tuple[Lora, ...], opened: Opened) -> tuple[Mix | None, Mix | None]:
        """Return the mixes of LoRAs for the UNet and for the text encoder; None where no LoRA has a weight."""
        modules = opened.modules
        pairs = [(self._extras.loras.get(lora.name, modules.loaded, modules.architecture), lora) for lora in loras]
        unet = Mix.of((loaded, lora.weight) for loaded, lora in pairs)
        text = Mix.of((loaded, lora.text_encoder_weight) for loaded, lora in pairs)
        return unet, text
