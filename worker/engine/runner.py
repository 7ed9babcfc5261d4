"""The torch side of the engine: one resident checkpoint, and what is done on the device for each image."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from worker.diffusion import canvas, img2img, out_of_memory, vae
from worker.diffusion.checkpoint_loader import LoadedCheckpoint
from worker.diffusion.compiled import CompiledUNet
from worker.diffusion.conditioning import Conditions, PromptEncoder
from worker.diffusion.img2img import Encoding
from worker.diffusion.lora import Adapters
from worker.diffusion.plan import Walk
from worker.diffusion.preview import Previewer
from worker.diffusion.transfer import sent
from worker.engine.draft import Drafter, ImageDraft, Library, PreparedPass
from worker.engine.latents import Inpainting, Latents
from worker.engine.preparation import Preparation, PreparationSteps, Task
from worker.engine.request import Developing, ImageSpec, Mask, Start
from worker.engine.snapshot import Snapshot
from worker.engine.unet_batch import UNetBatch


class DiffusionRunner:
    """Renders images of one checkpoint, many at a time.

    With `strict_samples` every UNet call is filled up to that many samples, and only images whose calls are alike share one, so
    that an image's bits do not depend on its neighbours.
    """

    def __init__(
        self,
        checkpoint: LoadedCheckpoint,
        drafter: Drafter,
        previewer: Previewer,
        *,
        strict_samples: int | None = None,
        compiled: CompiledUNet | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._drafter = drafter
        self._previewer = previewer
        self._is_strict = strict_samples is not None
        self._prompts = PromptEncoder(checkpoint)
        self._text_adapters = Adapters(checkpoint.text_encoder, "text_encoder")
        self._stack = UNetBatch(checkpoint, strict_samples, compiled=compiled)
        self._encodings: WeakKeyDictionary[Start, Encoding] = WeakKeyDictionary()
        self._masked: WeakKeyDictionary[Start, Encoding] = WeakKeyDictionary()
        # Large pictures take tens of milliseconds to resize, several steps of the others.
        self._aside = ThreadPoolExecutor(1, "resizer")

    @classmethod
    def of(
        cls,
        checkpoint: LoadedCheckpoint,
        library: Library | None = None,
        previewer: Previewer | None = None,
        *,
        strict_samples: int | None = None,
        compiled: CompiledUNet | None = None,
    ) -> Self:
        """Build a runner; without a library there are no LoRAs, embeddings and VAEs beside the checkpoint's own."""
        drafter = Drafter(checkpoint, library or Library.empty(checkpoint))
        return cls(
            checkpoint,
            drafter,
            previewer or Previewer(checkpoint.vae),
            strict_samples=strict_samples,
            compiled=compiled,
        )

    def draft(self, spec: ImageSpec) -> ImageDraft:
        """Do all that does not wait for the device; some of it takes memory there."""
        with out_of_memory.told():
            return self._drafter.draft(spec)

    def begin(self, draft: ImageDraft, snapshot: Snapshot | None = None) -> Preparation[Latents]:
        """Encode prompts and the picture to start from, and stand at the first step, or where the snapshot was taken."""
        return Preparation(self._beginning(draft, snapshot))

    @torch.inference_mode()
    def denoise(self, batch: Sequence[Latents]) -> None:
        """Make one UNet call for all images of a bucket and step each with its own sampler."""
        with out_of_memory.told():
            for image, rows in zip(batch, self._stack.predict(batch), strict=True):
                image.advance(rows)

    def turn(self, image: Latents) -> Preparation[Latents]:
        """Enlarge the result of a pass and stand at the first step of the next."""
        return Preparation(self._turning(image))

    @torch.inference_mode()
    def preview(self, image: Latents) -> Developing:
        """Begin to show what the last prediction pointed to, small."""
        with out_of_memory.told():
            return self._previewer.preview(image.walk.denoised())

    @torch.inference_mode()
    def decode(self, image: Latents) -> Developing:
        """Begin to decode a finished image."""
        with out_of_memory.told():
            return vae.begin_decode(image.draft.vae, image.walk.x)

    @torch.inference_mode()
    def _beginning(self, draft: ImageDraft, snapshot: Snapshot | None) -> PreparationSteps[Latents]:
        with out_of_memory.told():
            leg, *left = draft.legs[snapshot.leg if snapshot else 0 :]
            start = draft.start if leg is draft.legs[0] else None
            clean = (yield from self._clean(draft, leg, start)) if start else None
            image = yield from self._stand(draft, leg, clean)
            image.legs_left = tuple(left)
            if start and start.mask is not None and clean is not None:
                image.inpainting = self._inpainting(start.mask, clean, leg)
            if snapshot:
                image.resume(snapshot)
            return image

    @torch.inference_mode()
    def _turning(self, image: Latents) -> PreparationSteps[Latents]:
        with out_of_memory.told():
            leg, *left = image.legs_left
            enlarged = yield from self._enlarged(image, leg)
            image.enter((yield from self._stand(image.draft, leg, enlarged)), tuple(left))
            return image

    def _stand(self, draft: ImageDraft, leg: PreparedPass, clean: Tensor | None) -> PreparationSteps[Latents]:
        """Stand at the first step of a pass: on noise, or on a picture, (1, 4, height/8, width/8), with noise over it."""
        device = self._checkpoint.device
        clean_weight, noise_weight = leg.plan.start
        x = noise_weight * sent(leg.noise, device)
        if clean is not None:
            x = clean_weight * clean + x
        image = Latents(draft, leg, Walk(leg.plan, x, leg.fresh), self._conditions(leg))
        image.is_strict = self._is_strict
        if self._checkpoint.is_inpainting:
            image.extra = yield from self._extra(draft, leg)
        return image

    def _conditions(self, leg: PreparedPass) -> Conditions:
        with self._text_adapters.applied([(1, leg.text_mix)]):
            return self._prompts.encode(leg.script, leg.text_mix.key if leg.text_mix else None)

    def _clean(self, draft: ImageDraft, leg: PreparedPass, start: Start) -> PreparationSteps[Tensor]:
        """Encode the picture to start from, once for all images that do."""
        encoding = self._encodings.get(start)
        if encoding is None:
            encoding = self._encodings[start] = Encoding(draft.vae, start.pixels)
        yield encoding
        return img2img.filled(encoding.latents(leg.posterior), start.mask, start.fill, leg.noise)

    def _inpainting(self, mask: Mask, clean: Tensor, leg: PreparedPass) -> Inpainting:
        device = self._checkpoint.device
        return Inpainting(img2img.latent_mask(mask, device), clean, sent(leg.noise, device))

    def _extra(self, draft: ImageDraft, leg: PreparedPass) -> PreparationSteps[Tensor]:
        """Return what an inpainting checkpoint reads beside the latents: the picture to start from, masked, or nothing at all."""
        start = draft.start if leg is draft.legs[0] else None
        if start is None:
            nothing = img2img.begin_masked(
                draft.vae, np.zeros((leg.wanted.height, leg.wanted.width, 3), np.uint8), None
            )
            yield nothing
            return img2img.inpainting_channels(nothing.latents(None), None)
        masked = self._masked.get(start)
        if masked is None:
            masked = self._masked[start] = img2img.begin_masked(draft.vae, start.pixels, start.mask)
        yield masked
        return img2img.inpainting_channels(masked.latents(leg.masked_posterior), start.mask)

    def _enlarged(self, image: Latents, leg: PreparedPass) -> PreparationSteps[Tensor]:
        """Bring a pass's latents to the size of the next, as latents or by way of pixels."""
        wanted, x, draft = leg.wanted, image.walk.x, image.draft
        if wanted.upscaler is not None and not wanted.is_enlarged_in_pixels:
            return img2img.upscale_latents(x, width=wanted.width, height=wanted.height, upscaler=wanted.upscaler)
        development = vae.begin_decode(draft.vae, x)
        yield development
        resized = self._aside.submit(canvas.resize, development.pixels(), wanted.width, wanted.height)
        yield Task(resized)
        encoding = Encoding(draft.vae, resized.result())
        yield encoding
        return encoding.latents(leg.posterior)
