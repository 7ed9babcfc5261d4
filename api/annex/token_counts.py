"""Tokens of prompts, counted and shown by chunks of 75, as CLIP reads them. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from shared.vocabulary.prompt_chunks import Chunk
from shared.vocabulary.prompt_grammar import split_loras
from shared.vocabulary.prompt_reader import PromptReader, Row

OPENING_WORDS = 4


@dataclass(frozen=True, slots=True)
class Word:
    """An embedding, reduced to its name and its length in tokens."""

    name: str
    vectors: int

    def __len__(self) -> int:
        """Return how many tokens it takes."""
        return self.vectors


def counted(prompt: str, negative_prompt: str, *, steps: int, embeddings: Sequence[Word]) -> dict[str, Any]:
    """Return the counts of both prompts, as plain values. Raises `InvalidRequest` for prompts that no job may have."""
    script = _reader().read(split_loras(prompt)[0], negative_prompt, steps=steps, embeddings=tuple(embeddings))
    negative, *positives = script.rows
    return {"prompt": _count(positives), "negative_prompt": _count([negative])}


@cache
def _reader() -> PromptReader[Word]:
    return PromptReader()


def _count(rows: Iterable[Row[Word]]) -> dict[str, Any]:
    texts = [_without_filling(text) for row in rows for _, text in row.timeline]
    longest = max(texts, key=lambda text: (len(text), sum(len(chunk.slots) for chunk in text)))
    names = (placed.embedding.name for text in texts for chunk in text for placed in chunk.placed)
    return {
        "tokens": sum(len(chunk.slots) for chunk in longest),
        "chunks": [
            {"tokens": len(chunk.slots), "begins": _reader().opening(chunk, words=OPENING_WORDS)} for chunk in longest
        ],
        "embeddings": list(dict.fromkeys(names)),
    }


def _without_filling(text: tuple[Chunk[Word], ...]) -> tuple[Chunk[Word], ...]:
    """Drop the empty chunks that pad all texts to one length."""
    length = max((index for index, chunk in enumerate(text, start=1) if chunk.slots), default=1)
    return text[:length]
