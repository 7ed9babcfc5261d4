"""State of one image on the device between two UNet calls."""

from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from worker.diffusion.conditioning import Conditions
from worker.diffusion.plan import Walk
from worker.diffusion.transfer import to_device
from worker.engine.draft import ImageDraft, PassDraft
from worker.engine.snapshot import Snapshot
from worker.residency.weights import CheckpointWeights


@dataclass(frozen=True, slots=True)
class Inpainting:
    """The encoded picture, which stays outside the mask. `mask` is (1, 1, height/8, width/8), the others (1, 4, …)."""

    mask: Tensor
    clean: Tensor
    noise: Tensor

    def keep(self, x: Tensor, renoise: tuple[float, float]) -> Tensor:
        """Replace what lies outside the mask by the picture, noised to the level of `x`."""
        clean_weight, noise_weight = renoise
        return self.mask * x + (1 - self.mask) * (clean_weight * self.clean + noise_weight * self.noise)


@dataclass(slots=True)
class Latents:
    """An image's present pass and how far it is.

    `extra` is what an inpainting checkpoint reads beside the latents, (1, 5, height/8, width/8). `passes_left` are the
    passes to come; `steps_before` counts the UNet calls of the passes that are over.
    """

    draft: ImageDraft
    present: PassDraft
    walk: Walk
    conditions: Conditions
    is_strict: bool = False
    inpainting: Inpainting | None = None
    extra: Tensor | None = None
    passes_left: tuple[PassDraft, ...] = ()
    steps_before: int = 0

    @property
    def checkpoint(self) -> CheckpointWeights:
        """The weights that the present pass is walked with."""
        return self.present.weights

    @property
    def shape(self) -> tuple[int, int]:
        """Latent height and width."""
        return self.walk.x.shape[2], self.walk.x.shape[3]

    @property
    def bucket(self) -> Hashable:
        """Key of images that may share a call: their shape and what limits its rows, the modules' architecture.

        In strict mode all that decides how the UNet computes a row belongs to it.
        """
        key = (*self.shape, self.present.opened.modules.architecture)
        return (*key, self.context.shape[1], self.present.unet_mix) if self.is_strict else key

    @property
    def samples(self) -> int:
        """Rows of the UNet's batch."""
        return self.conditions.samples

    @property
    def cost(self) -> float:
        """Latent pixels of one UNet call."""
        height, width = self.shape
        return float(self.samples * height * width)

    @property
    def steps_done(self) -> int:
        """UNet calls over all passes."""
        return self.steps_before + self.walk.calls_done

    @property
    def is_pass_over(self) -> bool:
        """Whether the present pass has made its last call."""
        return self.walk.is_over

    @property
    def is_over(self) -> bool:
        """Whether the last pass has made its last call, so that only decoding is left."""
        return self.walk.is_over and not self.passes_left

    @property
    def context(self) -> Tensor:
        """Encoded prompts of the present step, (samples, tokens, width)."""
        return self.conditions.at(self.walk.call.step - self.present.steps_skipped)

    def start_pass(self, other: "Latents", passes_left: tuple[PassDraft, ...]) -> None:
        """Take over the state of `other`, which stands at the first step of the next pass."""
        self.steps_before = self.steps_done
        self.present, self.walk, self.conditions = other.present, other.walk, other.conditions
        self.extra, self.inpainting = other.extra, None
        self.passes_left = passes_left

    def snapshot(self) -> Snapshot:
        """Return the image's progress and references to its latents. Copies nothing."""
        pass_index = len(self.draft.passes) - len(self.passes_left) - 1
        return Snapshot(pass_index, self.walk.calls_done, self.steps_done, self.walk.state())

    def resume(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot of the same image in the same pass."""
        self.steps_before = snapshot.steps_done - snapshot.calls_done
        device = self.walk.x.device
        self.walk.resume(
            snapshot.calls_done,
            {name: to_device(torch.from_numpy(latents), device) for name, latents in snapshot.arrays().items()},
        )

    def model_input(self) -> Tensor:
        """Return the UNet's input, the same in each of the image's rows, (1, channels, height/8, width/8) float32."""
        scaled = self.walk.model_input()
        return scaled if self.extra is None else torch.cat([scaled, self.extra], dim=1)

    def advance(self, predictions: Tensor) -> None:
        """Take one sampler step by the predictions for the image's rows, (samples, 4, height/8, width/8) float32."""
        guided = self.conditions.guide(predictions, self.present.spec.guidance_scale)
        if self.inpainting is None:
            self.walk.advance(guided)
        else:
            self.walk.advance(guided, partial(self.inpainting.keep, renoise=self.walk.call.renoise))
