"""The engine's runner on torch: encode, denoise, upscale and decode images of one resident checkpoint."""

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
from worker.diffusion.transfer import to_device
from worker.engine.draft import Drafter, ImageDraft, Library, PassDraft
from worker.engine.latents import Inpainting, Latents
from worker.engine.preparation import PendingFuture, Preparation, PreparationSteps
from worker.engine.request import ImageSpec, Mask, PendingPixels, Start
from worker.engine.snapshot import Snapshot
from worker.engine.unet_batch import UNetBatch


class DiffusionRunner:
    """Renders images of one checkpoint, many in a UNet call.

    In strict mode, `strict_samples`, every UNet call is padded to that many samples and holds only images that the UNet computes
    alike, so that an image's bits do not depend on its neighbours.
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
        self._unet_batch = UNetBatch(checkpoint, strict_samples, compiled=compiled)
        self._start_encodings: WeakKeyDictionary[Start, Encoding] = WeakKeyDictionary()
        self._masked_encodings: WeakKeyDictionary[Start, Encoding] = WeakKeyDictionary()
        # Large pictures take tens of milliseconds to resize, several steps of the others.
        self._resizer = ThreadPoolExecutor(1, "resizer")

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
        """Build a runner; without a library it knows no LoRAs, no embeddings and only the checkpoint's VAE."""
        drafter = Drafter(checkpoint, library or Library.empty(checkpoint))
        return cls(
            checkpoint,
            drafter,
            previewer or Previewer(checkpoint.vae),
            strict_samples=strict_samples,
            compiled=compiled,
        )

    def draft(self, spec: ImageSpec) -> ImageDraft:
        """Do the host's share; weights that it loads take memory on the device. Raises `OutOfMemory`."""
        with out_of_memory.translated():
            return self._drafter.draft(spec)

    def prepare(self, draft: ImageDraft, snapshot: Snapshot | None = None) -> Preparation[Latents]:
        """Encode prompts and the picture to start from, up to the first step or the snapshot's."""
        return Preparation(self._first_pass(draft, snapshot))

    @torch.inference_mode()
    def denoise(self, batch: Sequence[Latents]) -> None:
        """Make one UNet call for all images of a bucket, then step each by its plan."""
        with out_of_memory.translated():
            for image, rows in zip(batch, self._unet_batch.predict(batch), strict=True):
                image.advance(rows)

    def prepare_next_pass(self, image: Latents) -> Preparation[Latents]:
        """Upscale the result of a pass, up to the first step of the next."""
        return Preparation(self._next_pass(image))

    @torch.inference_mode()
    def preview(self, image: Latents) -> PendingPixels:
        """Start a small preview of the clean latents that the last prediction points to."""
        with out_of_memory.translated():
            return self._previewer.preview(image.walk.denoised())

    @torch.inference_mode()
    def decode(self, image: Latents) -> PendingPixels:
        """Start to decode a finished image."""
        with out_of_memory.translated():
            return vae.begin_decode(image.draft.vae, image.walk.x)

    @torch.inference_mode()
    def _first_pass(self, draft: ImageDraft, snapshot: Snapshot | None) -> PreparationSteps[Latents]:
        """Prepare the first pass, or the one that the snapshot was taken in."""
        with out_of_memory.translated():
            present, *left = draft.passes[snapshot.pass_index if snapshot else 0 :]
            start = draft.start if present is draft.passes[0] else None
            clean = (yield from self._encoded_start(draft, present, start)) if start else None
            image = yield from self._latents(draft, present, clean)
            image.passes_left = tuple(left)
            if start and start.mask is not None and clean is not None:
                image.inpainting = self._inpainting(start.mask, clean, present)
            if snapshot:
                image.resume(snapshot)
            return image

    @torch.inference_mode()
    def _next_pass(self, image: Latents) -> PreparationSteps[Latents]:
        with out_of_memory.translated():
            following, *left = image.passes_left
            clean = yield from self._upscaled(image, following)
            image.start_pass((yield from self._latents(image.draft, following, clean)), tuple(left))
            return image

    def _latents(self, draft: ImageDraft, present: PassDraft, clean: Tensor | None) -> PreparationSteps[Latents]:
        """Build the state at a pass's first step: noise, over the clean latents (1, 4, height/8, width/8) if there are any."""
        device = self._checkpoint.device
        clean_weight, noise_weight = present.plan.start
        x = noise_weight * to_device(present.noise, device)
        if clean is not None:
            x = clean_weight * clean + x
        image = Latents(draft, present, Walk(present.plan, x, present.fresh), self._conditions(present))
        image.is_strict = self._is_strict
        if self._checkpoint.is_inpainting:
            image.extra = yield from self._inpainting_input(draft, present)
        return image

    def _conditions(self, present: PassDraft) -> Conditions:
        with self._text_adapters.applied([(1, present.text_mix)]):
            return self._prompts.encode(present.script, present.text_mix.key if present.text_mix else None)

    def _encoded_start(self, draft: ImageDraft, present: PassDraft, start: Start) -> PreparationSteps[Tensor]:
        """Encode the picture to start from, once for all images that share it."""
        encoding = self._start_encodings.get(start)
        if encoding is None:
            encoding = self._start_encodings[start] = Encoding(draft.vae, start.pixels)
        yield encoding
        return img2img.filled(encoding.latents(present.posterior), start.mask, start.fill, present.noise)

    def _inpainting(self, mask: Mask, clean: Tensor, present: PassDraft) -> Inpainting:
        device = self._checkpoint.device
        return Inpainting(img2img.latent_mask(mask, device), clean, to_device(present.noise, device))

    def _inpainting_input(self, draft: ImageDraft, present: PassDraft) -> PreparationSteps[Tensor]:
        """Return an inpainting checkpoint's extra channels: mask and masked picture; all masked without a picture."""
        start = draft.start if present is draft.passes[0] else None
        if start is None:
            size = (present.spec.height, present.spec.width, 3)
            empty = img2img.masked_encoding(draft.vae, np.zeros(size, np.uint8), None)
            yield empty
            return img2img.inpainting_channels(empty.latents(None), None)
        encoding = self._masked_encodings.get(start)
        if encoding is None:
            encoding = img2img.masked_encoding(draft.vae, start.pixels, start.mask)
            self._masked_encodings[start] = encoding
        yield encoding
        return img2img.inpainting_channels(encoding.latents(present.masked_posterior), start.mask)

    def _upscaled(self, image: Latents, following: PassDraft) -> PreparationSteps[Tensor]:
        """Bring the result of a pass to the size of the following one, as latents or by way of pixels."""
        spec, x, vae_in_use = following.spec, image.walk.x, image.draft.vae
        if spec.upscaler is not None and not spec.is_enlarged_in_pixels:
            return img2img.upscale_latents(x, width=spec.width, height=spec.height, upscaler=spec.upscaler)
        decoding = vae.begin_decode(vae_in_use, x)
        yield decoding
        resizing = self._resizer.submit(canvas.resize, decoding.pixels(), spec.width, spec.height)
        yield PendingFuture(resizing)
        encoding = Encoding(vae_in_use, resizing.result())
        yield encoding
        return encoding.latents(following.posterior)
