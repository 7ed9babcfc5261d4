"""Prompts as the UNet reads them: CLIP's last hidden states, in chunks of 75 tokens so that prompts may have any length."""

from functools import lru_cache

import torch
from torch import Tensor

from worker.diffusion.checkpoint import Checkpoint

CHUNK_TOKENS = 75  # CLIP reads 77: these, a start and an end token
CACHED_PROMPTS = 256  # 0.24 MB each at 768 wide in fp32; negative prompts repeat almost always


class PromptEncoder:
    """Encodes prompts with one checkpoint's text encoder and remembers the last ones."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._encoded = lru_cache(CACHED_PROMPTS)(self._encode)

    def encode(self, prompt: str, negative_prompt: str | None) -> Tensor:
        """Return (samples, tokens, width): the negative prompt's rows first, or the prompt's alone without one.

        The shorter of the two is filled up with empty chunks, as A1111 does.
        """
        prompts = [prompt] if negative_prompt is None else [negative_prompt, prompt]
        chunked = [self._chunks(text) for text in prompts]
        length = max(len(chunks) for chunks in chunked)
        return torch.cat([self._encoded(_padded(chunks, length)) for chunks in chunked])

    def _chunks(self, prompt: str) -> tuple[tuple[int, ...], ...]:
        ids = self._checkpoint.tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False).input_ids
        chunks = tuple(tuple(ids[at : at + CHUNK_TOKENS]) for at in range(0, len(ids), CHUNK_TOKENS))
        return chunks or ((),)

    def _encode(self, chunks: tuple[tuple[int, ...], ...]) -> Tensor:
        tokenizer, device = self._checkpoint.tokenizer, self._checkpoint.device
        rows = [
            [tokenizer.bos_token_id, *chunk, *[tokenizer.eos_token_id] * (CHUNK_TOKENS + 1 - len(chunk))]
            for chunk in chunks
        ]
        states: Tensor = self._checkpoint.text_encoder(torch.tensor(rows, device=device)).last_hidden_state
        return states.reshape(1, -1, states.shape[-1])


def _padded(chunks: tuple[tuple[int, ...], ...], length: int) -> tuple[tuple[int, ...], ...]:
    return chunks + ((),) * (length - len(chunks))
