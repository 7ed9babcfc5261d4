"""One UNet call for many images: stacks their latents, timesteps, prompts and LoRAs row by row and splits the predictions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from worker.diffusion.checkpoint_loader import LoadedCheckpoint
from worker.diffusion.compiled import CompiledUNet
from worker.diffusion.lora import Adapters, Mix
from worker.diffusion.transfer import to_device
from worker.engine.latents import Latents

CACHED_CONTEXTS = 8  # one per shape that is rendered at the same time


class UNetBatch:
    """Makes UNet calls, by the compiled UNet where it has compiled the shape.

    With `fill_to` every call is padded with rows of zeros to that many rows.
    """

    def __init__(
        self, checkpoint: LoadedCheckpoint, fill_to: int | None = None, *, compiled: CompiledUNet | None = None
    ) -> None:
        self._checkpoint = checkpoint
        self._fill_to = fill_to
        self._compiled = compiled
        self._adapters = Adapters(checkpoint.unet, "unet")
        self._contexts: dict[tuple[int, int], Contexts] = {}

    def predict(self, batch: Sequence[Latents]) -> list[Tensor]:
        """Return each image's predictions, (samples, 4, height/8, width/8) float32. All images have one latent shape."""
        device, dtype = self._checkpoint.device, self._checkpoint.dtype
        x = torch.cat([image.model_input().expand(image.samples, -1, -1, -1) for image in batch])
        # A float tensor, because some samplers have fractional steps.
        steps = [image.walk.call.timestep for image in batch for _ in range(image.samples)]
        timesteps = to_device(torch.tensor(steps, dtype=torch.float32), device)
        contexts = self._stacked(batch)
        prediction = self._call(
            self._padded(x.to(dtype)),
            self._padded(timesteps),
            self._padded(contexts.stacked),
            contexts.mask,
            self._groups(batch),
        )
        return list(prediction[: len(x)].float().split([image.samples for image in batch]))

    def _call(
        self, x: Tensor, timesteps: Tensor, context: Tensor, mask: Tensor | None, groups: list[tuple[int, Mix | None]]
    ) -> Tensor:
        # A mask and LoRAs are rare and come in too many forms to compile each.
        if self._compiled is not None and mask is None and not any(mix for _, mix in groups):
            compiled = self._compiled.predict(x, timesteps, context)
            if compiled is not None:
                return compiled
        with self._adapters.applied(groups):
            output: Any = self._checkpoint.unet(
                x, timesteps, encoder_hidden_states=context, encoder_attention_mask=mask, return_dict=False
            )
        prediction: Tensor = output[0]
        return prediction

    def _stacked(self, batch: Sequence[Latents]) -> "Contexts":
        """Stack the prompts, or reuse the stack of the last tick while the batch and its prompts are the same."""
        shape, parts = batch[0].shape, [image.context for image in batch]
        contexts = self._contexts.pop(shape, None)
        if contexts is None or not contexts.is_of(parts):
            contexts = Contexts(parts)
        self._contexts[shape] = contexts
        if len(self._contexts) > CACHED_CONTEXTS:
            del self._contexts[next(iter(self._contexts))]
        return contexts

    def _groups(self, batch: Sequence[Latents]) -> list[tuple[int, Mix | None]]:
        if (
            self._fill_to is not None
        ):  # images of one call are alike then, and the filling must not change how they are computed
            return [(self._fill_to, batch[0].present.unet_mix)]
        return [(image.samples, image.present.unet_mix) for image in batch]

    def _padded(self, rows: Tensor) -> Tensor:
        if self._fill_to is None or len(rows) >= self._fill_to:
            return rows
        return torch.cat([rows, rows.new_zeros(self._fill_to - len(rows), *rows.shape[1:])])


class Contexts:
    """Encoded prompts, padded to the longest and stacked. `mask` is False at padding; None without any: a mask costs speed."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._parts = list(parts)
        longest = max(part.shape[1] for part in parts)
        self.stacked = torch.cat([_padded_to(part, longest) for part in parts])
        self.mask = None
        if any(part.shape[1] < longest for part in parts):
            lengths = torch.tensor([part.shape[1] for part in parts for _ in range(len(part))])
            self.mask = to_device(torch.arange(longest) < lengths[:, None], self.stacked.device)

    def is_of(self, parts: Sequence[Tensor]) -> bool:
        """Whether this is the stack of these very tensors."""
        return len(parts) == len(self._parts) and all(map(lambda a, b: a is b, parts, self._parts))


def _padded_to(context: Tensor, tokens: int) -> Tensor:
    return torch.nn.functional.pad(context, (0, 0, 0, tokens - context.shape[1]))
