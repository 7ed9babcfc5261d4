"""Count the tokens of prompts and show where each chunk of 75 begins, as CLIP reads them."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from api.admission.submissions import Steps, Text
from api.callers import Reader
from api.desk import Desk, DeskDep
from api.openapi import documented
from api.routing import Router, in_room
from shared.files.weights import Kind
from shared.fleet import registry
from shared.vocabulary.params import reject_nul
from shared.vocabulary.prompt_chunks import CHUNK_TOKENS, Chunk
from shared.vocabulary.prompt_grammar import split_loras
from shared.vocabulary.prompt_reader import PromptReader, Row

router = Router(prefix="/v1/prompts", tags=["choices"], responses=documented(401, 403, 422, 429, 503))

OPENING_WORDS = 4


class Prompts(BaseModel):
    """The prompts to count. `steps` matters for prompt editing, such as `[cat:dog:10]`."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"prompt": "a red circle on a blue background"}]}
    )

    prompt: Text = ""
    negative_prompt: Text = ""
    steps: Steps = 20

    _no_nul = field_validator("prompt", "negative_prompt")(reject_nul)


class TokenChunk(BaseModel):
    """Up to 75 tokens, which CLIP encodes together."""

    tokens: int
    begins: Annotated[str, Field(description="The first words of the chunk, as the tokenizer spells them.")]


class TokenCount(BaseModel):
    """Tokens of the longest text that any step encodes. Parts joined by `AND` are encoded apart."""

    tokens: int
    chunks: list[TokenChunk]
    embeddings: Annotated[list[str], Field(description="Names of the embeddings that the prompt uses.")]


class TokenCounts(BaseModel):
    """Token counts of both prompts, as the workers count them."""

    chunk_tokens: Annotated[int, Field(description="The most tokens of a chunk.")] = CHUNK_TOKENS
    prompt: TokenCount
    negative_prompt: TokenCount


@dataclass(frozen=True, slots=True)
class Word:
    """An embedding, reduced to its name and its length in tokens."""

    name: str
    vectors: int

    def __len__(self) -> int:
        """Return how many tokens it takes."""
        return self.vectors


@router.post("/tokens", summary="Count the tokens of prompts")
@in_room("prompts")
def tokens(wanted: Prompts, desk: DeskDep, _caller: Reader) -> TokenCounts:
    """Count tokens and show where each chunk of 75 begins, by the rules of the workers. LoRA tags take no tokens.

    Meant for use while a user types: it has a rate limit of its own, equal to the key's requests per minute but at least 150.
    Long prompts count as several.
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
    """Drop the empty chunks that pad all texts to one length."""
    length = max((index for index, chunk in enumerate(text, start=1) if chunk.slots), default=1)
    return text[:length]
