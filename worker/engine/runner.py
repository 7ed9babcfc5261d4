"""The engine's runner on torch: encode, denoise, upscale and decode images of the resident checkpoint."""

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Self
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from shared.errors import OutOfMemory
from shared.files.weights import Shelves
from worker.diffusion import canvas, img2img, out_of_memory, vae
from worker.diffusion.checkpoint_loader import LoadedCheckpoint
from worker.diffusion.compiled import CompiledUNet
from worker.diffusion.conditioning import Conditions
from worker.diffusion.img2img import Encoding
from worker.diffusion.plan import Walk
from worker.diffusion.preview import Previewer
from worker.diffusion.transfer import to_device
from worker.engine.draft import Drafter, ExtraWeights, ImageDraft, PassDraft
from worker.engine.latents import Inpainting, Latents
from worker.engine.pipeline import Compile, Pipeline
from worker.engine.preparation import Pending, PendingFuture, Preparation, PreparationSteps, Turn
from worker.engine.request import ImageSpec, Mask, PendingPixels, Start
from worker.engine.snapshot import Snapshot
from worker.residency.modules import ResidentModules
from worker.residency.residency import Residency
from worker.residency.weights import CheckpointWeights

Encodings = WeakKeyDictionary[Start, dict[tuple[int, str], Encoding]]


class DiffusionRunner:
    """Renders images of the checkpoints of one device, many in a UNet call.

    In strict mode, `strict_samples`, every UNet call is padded to that many samples and holds only images that the UNet computes
    alike, so that an image's bits do not depend on its neighbours. `compile_` makes the compiled twin of a UNet, or None.
    """

    def __init__(
        self,
        residency: Residency,
        extras: ExtraWeights | None = None,
        *,
        preview: Callable[[Any], Previewer] = Previewer,
        strict_samples: int | None = None,
        compile_: Compile = lambda _: None,
    ) -> None:
        self._residency = residency
        self._drafter = Drafter(residency, extras or ExtraWeights.at(Shelves.at(), memory_bytes=0))
        self._preview = preview
        self._strict_samples = strict_samples
        self._compile = compile_
        self._pipelines: WeakKeyDictionary[ResidentModules, Pipeline] = WeakKeyDictionary()
        self._start_encodings: Encodings = WeakKeyDictionary()
        self._masked_encodings: Encodings = WeakKeyDictionary()
        # Large pictures take tens of milliseconds to resize, several steps of the others.
        self._resizer = ThreadPoolExecutor(1, "resizer")
        self._pipeline(
            residency.modules
        )  # before any render: a compiler's first trace takes every module called meanwhile

    @classmethod
    def of(
        cls,
        checkpoint: LoadedCheckpoint,
        extras: ExtraWeights | None = None,
        previewer: Previewer | None = None,
        *,
        strict_samples: int | None = None,
        compiled: CompiledUNet | None = None,
    ) -> Self:
        """Build a runner of one checkpoint; without extras it knows no LoRAs, no embeddings and only the checkpoint's VAE."""
        return cls(
            Residency(checkpoint),
            extras,
            preview=lambda vae: previewer or Previewer(vae),
            strict_samples=strict_samples,
            compile_=lambda _: compiled,
        )

    def price_s(self, checkpoint: Hashable) -> float:
        """Return the seconds to make a checkpoint resident."""
        return self._residency.price_s(_weights(checkpoint))

    def turn_to(self, checkpoint: Hashable) -> Pending | None:
        """Make a checkpoint resident. Raises `OutOfMemory`, and what came of reading it again."""
        weights = _weights(checkpoint)
        reading = self._residency.turn_to(weights)
        if reading is not None:
            return PendingFuture(reading)
        # Now, since a swap waits for the device anyway, and no tick is to.
        with suppress(OutOfMemory), out_of_memory.translated():
            self._pipeline(self._residency.modules).previewer(weights)
        return None

    def draft(self, spec: ImageSpec) -> ImageDraft:
        """Do the host's share; weights that it loads take memory on the device. Raises `OutOfMemory`."""
        with out_of_memory.translated():
            return self._drafter.draft(spec)

    def prepare(self, draft: ImageDraft, snapshot: Snapshot | None = None) -> Preparation[Latents]:
        """Encode prompts and the picture to start from, up to the first step or the snapshot's."""
        index = snapshot.pass_index if snapshot else 0
        return Preparation(self._first_pass(draft, snapshot), draft.passes[index].weights)

    @torch.inference_mode()
    def denoise(self, batch: Sequence[Latents]) -> None:
        """Make one UNet call for all images of a bucket, then step each by its plan."""
        unet_batch = self._pipeline(batch[0].present.opened.modules).unet_batch
        try:
            with out_of_memory.translated():
                for image, rows in zip(batch, unet_batch.predict(batch), strict=True):
                    image.advance(rows)
        except OutOfMemory:
            self._residency.shed()
            raise

    def prepare_next_pass(self, image: Latents) -> Preparation[Latents]:
        """Upscale the result of a pass, up to the first step of the next."""
        return Preparation(self._next_pass(image), image.checkpoint)

    @torch.inference_mode()
    def preview(self, image: Latents) -> PendingPixels:
        """Start a small preview of the clean latents that the last prediction points to."""
        with out_of_memory.translated():
            previewer = self._pipeline(image.present.opened.modules).previewer(image.checkpoint)
            return previewer.preview(image.walk.denoised())

    @torch.inference_mode()
    def decode(self, image: Latents) -> PendingPixels:
        """Start to decode a finished image."""
        with out_of_memory.translated():
            return vae.begin_decode(image.present.vae_in_use, image.walk.x)

    @torch.inference_mode()
    def _first_pass(self, draft: ImageDraft, snapshot: Snapshot | None) -> PreparationSteps[Latents]:
        """Prepare the first pass, or the one that the snapshot was taken in."""
        with out_of_memory.translated():
            present, *left = draft.passes[snapshot.pass_index if snapshot else 0 :]
            start = draft.start if present is draft.passes[0] else None
            clean = (yield from self._encoded_start(present, start)) if start else None
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
            yield Turn(following.weights)
            image.start_pass((yield from self._latents(image.draft, following, clean)), tuple(left))
            return image

    def _latents(self, draft: ImageDraft, present: PassDraft, clean: Tensor | None) -> PreparationSteps[Latents]:
        """Build the state at a pass's first step: noise, over the clean latents (1, 4, height/8, width/8) if there are any."""
        checkpoint, device = present.checkpoint, present.checkpoint.device
        clean_weight, noise_weight = present.plan.start
        x = noise_weight * to_device(present.noise, device)
        if clean is not None:
            x = clean_weight * clean + x
        image = Latents(draft, present, Walk(present.plan, x, present.fresh), self._conditions(present))
        image.is_strict = self._strict_samples is not None
        if checkpoint.is_inpainting:
            image.extra = yield from self._inpainting_input(draft, present)
        return image

    def _conditions(self, present: PassDraft) -> Conditions:
        return self._pipeline(present.opened.modules).conditions(present)

    def _pipeline(self, modules: ResidentModules) -> Pipeline:
        pipeline = self._pipelines.get(modules)
        if pipeline is None:
            pipeline = Pipeline(modules, self._preview, self._strict_samples, self._compile)
            self._pipelines[modules] = pipeline
        return pipeline

    def _encoded_start(self, present: PassDraft, start: Start) -> PreparationSteps[Tensor]:
        """Encode the picture to start from, once for all images that share it and the VAE."""
        encodings = self._start_encodings.setdefault(start, {})
        encoding = encodings.get(present.vae_key)
        if encoding is None:
            encoding = encodings[present.vae_key] = Encoding(present.vae_in_use, start.pixels)
        yield encoding
        return img2img.filled(encoding.latents(present.posterior), start.mask, start.fill, present.noise)

    def _inpainting(self, mask: Mask, clean: Tensor, present: PassDraft) -> Inpainting:
        device = present.checkpoint.device
        return Inpainting(img2img.latent_mask(mask, device), clean, to_device(present.noise, device))

    def _inpainting_input(self, draft: ImageDraft, present: PassDraft) -> PreparationSteps[Tensor]:
        """Return an inpainting checkpoint's extra channels: mask and masked picture; all masked without a picture."""
        start = draft.start if present is draft.passes[0] else None
        if start is None:
            size = (present.spec.height, present.spec.width, 3)
            empty = img2img.masked_encoding(present.vae_in_use, np.zeros(size, np.uint8), None)
            yield empty
            return img2img.inpainting_channels(empty.latents(None), None)
        encodings = self._masked_encodings.setdefault(start, {})
        encoding = encodings.get(present.vae_key)
        if encoding is None:
            encoding = img2img.masked_encoding(present.vae_in_use, start.pixels, start.mask)
            encodings[present.vae_key] = encoding
        yield encoding
        return img2img.inpainting_channels(encoding.latents(present.masked_posterior), start.mask)

    def _upscaled(self, image: Latents, following: PassDraft) -> PreparationSteps[Tensor]:
        """Bring the result of a pass to the size of the following one, as latents or by way of pixels."""
        spec, x = following.spec, image.walk.x
        if spec.upscaler is not None and not spec.is_enlarged_in_pixels:
            return img2img.upscale_latents(x, width=spec.width, height=spec.height, upscaler=spec.upscaler)
        decoding = vae.begin_decode(image.present.vae_in_use, x)
        yield decoding
        resizing = self._resizer.submit(canvas.resize, decoding.pixels(), spec.width, spec.height)
        yield PendingFuture(resizing)
        yield Turn(following.weights)
        encoding = Encoding(following.vae_in_use, resizing.result())
        yield encoding
        return encoding.latents(following.posterior)


def _weights(checkpoint: Hashable) -> CheckpointWeights:
    assert isinstance(checkpoint, CheckpointWeights)  # noqa: S101 - every checkpoint of our drafts is
    return checkpoint
