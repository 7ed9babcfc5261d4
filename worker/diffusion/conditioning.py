"""Prompt encoding with CLIP: any thread parses the text into a `Script`, the engine's thread encodes the script's chunks.

Attention weights and clip skip are A1111's. Each chunk of 75 tokens is encoded alone, so its bits do not depend on other chunks.
"""

from bisect import bisect_left
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from shared.errors import InvalidRequest
from shared.vocabulary import prompt_chunks, prompt_reader
from shared.vocabulary.prompt_chunks import CHUNK_TOKENS
from worker.diffusion.checkpoint_loader import LoadedCheckpoint
from worker.diffusion.textual_inversion import Embedding, injected
from worker.diffusion.transfer import to_device

CACHED_CHUNKS = 512  # 0.12 MB each at 768 wide in fp16; negative prompts repeat almost always
CACHED_STACKS = 4  # per image; `[a|b]` goes back and forth between two

Chunk = prompt_chunks.Chunk[Embedding]
Text = prompt_reader.Text[Embedding]
Row = prompt_reader.Row[Embedding]
Script = prompt_reader.Script[Embedding]
PromptReader = prompt_reader.PromptReader[Embedding]


class PromptEncoder:
    """Encodes scripts with a text encoder, whatever weights it has; caches chunks. For the engine's thread only."""

    def __init__(self, checkpoint: LoadedCheckpoint) -> None:
        self._checkpoint = checkpoint
        self._encoded = lru_cache(CACHED_CHUNKS)(self._encode)

    @torch.inference_mode()
    def encode(self, script: Script, text_loras: Hashable = None, weights: Hashable = None) -> "Conditions":
        """Encode all chunks of a script. Two cache keys name the LoRAs that the text encoder has at the moment, and its weights.

        Raises `InvalidRequest` for a clip skip deeper than the text encoder.
        """
        layers = self._checkpoint.text_encoder.config.num_hidden_layers
        if not 1 <= script.clip_skip <= layers:
            raise InvalidRequest(f"clip_skip {script.clip_skip}: this checkpoint's text encoder has {layers} layers.")
        texts = {id(text): text for row in script.rows for _, text in row.timeline}
        chunks = {chunk for text in texts.values() for chunk in text}
        return Conditions(
            script, {chunk: self._encoded(chunk, script.clip_skip, text_loras, weights) for chunk in chunks}
        )

    def _encode(self, chunk: Chunk, clip_skip: int, _text_loras: Hashable, _weights: Hashable) -> Tensor:
        """Return (77, width)."""
        tokenizer, encoder = self._checkpoint.tokenizer, self._checkpoint.text_encoder
        filling = CHUNK_TOKENS + 1 - len(chunk.slots)
        ids = [tokenizer.bos_token_id, *(token for token, _ in chunk.slots), *[tokenizer.eos_token_id] * filling]
        weights = [1.0, *(weight for _, weight in chunk.slots), *[1.0] * filling]
        # Transformers before and after 5.6: the layers lie in `text_model` or in the encoder itself.
        parts = getattr(encoder, "text_model", encoder)
        with injected(encoder, [chunk.placed]), _captured(parts.encoder.layers[-clip_skip]) as captured:
            output = encoder(to_device(torch.tensor([ids]), self._checkpoint.device))
        states = output.last_hidden_state if clip_skip == 1 else parts.final_layer_norm(captured[0])
        return _emphasized(states[0], weights)


class Conditions:
    """An image's encoded prompts for every step, and the guidance that joins the predictions for them.

    `weights` are the positive rows', of prompts joined by AND; `tokens` is the length of the context.
    """

    def __init__(self, script: Script, encoded: Mapping[Chunk, Tensor]) -> None:
        self.guided, self.samples, self.tokens = script.guided, script.samples, script.tokens
        self.weights = tuple(row.weight for row in script.rows[script.guided :])
        self._last_steps = sorted({last_step for row in script.rows for last_step, _ in row.timeline})
        moments = [tuple(_text_at(row, last_step) for row in script.rows) for last_step in self._last_steps]
        # Equal texts of a script are one object; comparing thousands of tokens at each step would cost more than the step.
        keys = [tuple(map(id, texts)) for texts in moments]
        distinct = dict(zip(keys, moments, strict=True))
        self._keys = keys
        # No method of self in here: tensors on a device must not wait for the collector of cycles.
        self._stack = lru_cache(CACHED_STACKS)(lambda key: _stacked(distinct[key], encoded))

    def at(self, step: int) -> Tensor:
        """Return the context of a step counted from 0, (samples, tokens, width). The same object while nothing changes."""
        moment = min(bisect_left(self._last_steps, step + 1), len(self._keys) - 1)
        return self._stack(self._keys[moment])

    def guide(self, prediction: Tensor, guidance_scale: float) -> Tensor:
        """Combine predictions (samples, channels, height, width) into one, (1, channels, height, width).

        Classifier-free guidance (arXiv:2207.12598), with several positives as in composable diffusion (arXiv:2206.01714).
        """
        if not self.guided:
            return prediction
        negative, positives = prediction[:1], prediction[1:]
        directions = [
            weight * (positive - negative) for weight, positive in zip(self.weights, positives.split(1), strict=True)
        ]
        return negative + guidance_scale * sum(directions[1:], directions[0])


@contextmanager
def _captured(layer: Any) -> Iterator[list[Tensor]]:
    """Collect a layer's outputs, (1, 77, width), within the block.

    The library's own `output_hidden_states` gathers what every thread's encoders give into one list while torch compiles on any.
    """
    outputs: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _layer, _inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()


def _emphasized(states: Tensor, weights: list[float]) -> Tensor:
    """Multiply each token's states, (77, width), by its weight, then restore the mean of all: A1111's "Original" emphasis."""
    if all(weight == 1 for weight in weights):
        return states
    before = states.float()
    after = before * to_device(torch.tensor(weights), states.device).unsqueeze(1)
    ratio = before.mean() / after.mean()
    return (after * torch.where(torch.isfinite(ratio), ratio, 1.0)).to(states.dtype)


def _text_at(row: Row, step: int) -> Text:
    """Return a row's text in a step counted from 1; after its last step, its last text."""
    return next((text for last_step, text in row.timeline if step <= last_step), row.timeline[-1][1])


def _stacked(texts: tuple[Text, ...], encoded: Mapping[Chunk, Tensor]) -> Tensor:
    return torch.stack([torch.cat([encoded[chunk] for chunk in text]) for text in texts])
