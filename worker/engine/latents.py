"""One image between steps, on the device."""

from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from worker.diffusion.conditioning import Conditions
from worker.diffusion.plan import Walk
from worker.diffusion.transfer import sent
from worker.engine.draft import ImageDraft, PreparedPass
from worker.engine.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Inpainting:
    """What stays: the encoded picture outside the mask. `mask` is (1, 1, height/8, width/8), the others (1, 4, …)."""

    mask: Tensor
    clean: Tensor
    noise: Tensor

    def keep(self, x: Tensor, renoise: tuple[float, float]) -> Tensor:
        """Put the picture, noised to the level of `x`, back where nothing is painted."""
        clean_weight, noise_weight = renoise
        return self.mask * x + (1 - self.mask) * (clean_weight * self.clean + noise_weight * self.noise)


@dataclass(slots=True)
class Latents:
    """An image's present pass and how far it is.

    `extra` is what an inpainting checkpoint reads beside the latents, (1, 5, height/8, width/8). `legs_left` are the
    passes to come and `steps_before` the UNet calls of those that are over.
    """

    draft: ImageDraft
    leg: PreparedPass
    walk: Walk
    conditions: Conditions
    is_strict: bool = False
    inpainting: Inpainting | None = None
    extra: Tensor | None = None
    legs_left: tuple[PreparedPass, ...] = ()
    steps_before: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Latent height and width."""
        return self.walk.x.shape[2], self.walk.x.shape[3]

    @property
    def bucket(self) -> Hashable:
        """What must be equal to stack images: their shape, and in strict mode all that decides how the UNet computes a row."""
        if self.is_strict:
            return (*self.shape, self.context.shape[1], self.leg.unet_mix)
        return self.shape

    @property
    def samples(self) -> int:
        """Rows of the UNet's batch."""
        return self.conditions.samples

    @property
    def cost(self) -> float:
        """Latent pixels through the UNet."""
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
        """Whether there is nothing left but to decode."""
        return self.walk.is_over and not self.legs_left

    @property
    def context(self) -> Tensor:
        """What the UNet reads at the present step, (samples, tokens, width)."""
        return self.conditions.at(self.walk.call.step - self.leg.steps_skipped)

    def enter(self, other: "Latents", legs_left: tuple[PreparedPass, ...]) -> None:
        """Go on as `other`, which stands at the first step of the next pass."""
        self.steps_before = self.steps_done
        self.leg, self.walk, self.conditions = other.leg, other.walk, other.conditions
        self.extra, self.inpainting = other.extra, None
        self.legs_left = legs_left

    def snapshot(self) -> Snapshot:
        """Say where the image stands, with what has been made of it. Copies nothing."""
        leg = len(self.draft.legs) - len(self.legs_left) - 1
        return Snapshot(leg, self.walk.calls_done, self.steps_done, self.walk.state())

    def resume(self, snapshot: Snapshot) -> None:
        """Go on where a snapshot of the same image stood in the same pass."""
        self.steps_before = snapshot.steps_done - snapshot.calls_done
        device = self.walk.x.device
        self.walk.resume(
            snapshot.calls_done,
            {name: sent(torch.from_numpy(latents), device) for name, latents in snapshot.arrays().items()},
        )

    def model_input(self) -> Tensor:
        """Return what the UNet sees in each of the image's rows, (1, channels, height/8, width/8) float32."""
        scaled = self.walk.model_input()
        return scaled if self.extra is None else torch.cat([scaled, self.extra], dim=1)

    def advance(self, predictions: Tensor) -> None:
        """Take the step that the predictions for the image's rows, (samples, 4, height/8, width/8) float32, call for."""
        guided = self.conditions.guide(predictions, self.leg.wanted.guidance_scale)
        if self.inpainting is None:
            self.walk.advance(guided)
        else:
            self.walk.advance(guided, partial(self.inpainting.keep, renoise=self.walk.call.renoise))
