"""Prompts as CLIP will read them: how many tokens they are, and where each chunk of 75 begins."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, field_validator

from api.admission.submissions import Steps, Text
from api.callers import Reader
from api.desk import Desk, DeskDep
from api.problems import documented
from shared.files.weights import Kind
from shared.fleet import registry
from shared.vocabulary.params import reject_nul
from shared.vocabulary.prompt_chunks import CHUNK_TOKENS, Chunk
from shared.vocabulary.prompt_grammar import split_loras
from shared.vocabulary.prompt_reader import PromptReader, Row

router = APIRouter(prefix="/v1/prompts", tags=["choices"], responses=documented(401, 403, 422, 429, 503))

OPENING_WORDS = 4


class Prompts(BaseModel):
    """What to count. `steps` matters to prompts that change from step to step."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"prompt": "a red circle on a blue background"}]}
    )

    prompt: Text = ""
    negative_prompt: Text = ""
    steps: Steps = 20

    _no_nul = field_validator("prompt", "negative_prompt")(reject_nul)


class TokenChunk(BaseModel):
    """Up to 75 tokens that CLIP reads together."""

    tokens: int
    begins: Annotated[str, Field(description="Its first words, as the tokenizer spells them.")]


class TokenCount(BaseModel):
    """The longest text that a prompt makes any step read; parts joined by AND are texts of their own."""

    tokens: int
    chunks: list[TokenChunk]
    embeddings: Annotated[list[str], Field(description="Those that act in the prompt.")]


class TokenCounts(BaseModel):
    """Both prompts, counted as the workers do."""

    chunk_tokens: int = CHUNK_TOKENS
    prompt: TokenCount
    negative_prompt: TokenCount


@dataclass(frozen=True, slots=True)
class Word:
    """An embedding as far as its name and length."""

    name: str
    vectors: int

    def __len__(self) -> int:
        """Return how many tokens it takes."""
        return self.vectors


@router.post("/tokens", summary="Count the tokens of prompts")
def tokens(wanted: Prompts, desk: DeskDep, _caller: Reader) -> TokenCounts:
    """Count tokens and show where each chunk of 75 begins, by the workers' own rules; LoRA tags take none.

    Cheap enough to call while someone types: it does not count against the key's requests a minute, but has as many of its own,
    and at least 150.
    """
    script = _reader().read(
        split_loras(wanted.prompt)[0], wanted.negative_prompt, steps=wanted.steps, embeddings=_embeddings(desk)
    )
    negative, *positives = script.rows
    return TokenCounts(prompt=_count(positives), negative_prompt=_count([negative]))


@cache
def _reader() -> PromptReader[Word]:
    return PromptReader()


def _embeddings(desk: Desk) -> tuple[Word, ...]:
    with desk.db.transaction() as session:
        rows = registry.weights(session, Kind.EMBEDDING, silent_after_s=desk.settings.lease_seconds)
    # Without a length it was announced by a worker of an older release.
    return tuple(Word(row.name, row.vectors or 1) for row in rows)


def _count(rows: Iterable[Row[Word]]) -> TokenCount:
    texts = [_without_filling(text) for row in rows for _, text in row.timeline]
    longest = max(texts, key=lambda text: (len(text), sum(len(chunk.slots) for chunk in text)))
    names = (placed.embedding.name for text in texts for chunk in text for placed in chunk.placed)
    return TokenCount(
        tokens=sum(len(chunk.slots) for chunk in longest),
        chunks=[
            TokenChunk(tokens=len(chunk.slots), begins=_reader().opening(chunk, words=OPENING_WORDS))
            for chunk in longest
        ],
        embeddings=list(dict.fromkeys(names)),
    )


def _without_filling(text: tuple[Chunk[Word], ...]) -> tuple[Chunk[Word], ...]:
    """Drop the empty chunks that make all texts of a script equally long."""
    length = max((index for index, chunk in enumerate(text, start=1) if chunk.slots), default=1)
    return text[:length]
