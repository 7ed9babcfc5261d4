"""Count the tokens of prompts and show where each chunk of 75 begins, as CLIP reads them."""

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
from shared.vocabulary.prompt_chunks import CHUNK_TOKENS

router = Router(prefix="/v1/prompts", tags=["choices"], responses=documented(401, 403, 422, 429, 503))

# Two prompts that together are no longer take a few milliseconds to read.
SMALL_CHARS = 1_000


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


@router.post("/tokens", summary="Count the tokens of prompts")
@in_room("prompts")
def tokens(wanted: Prompts, desk: DeskDep, _caller: Reader) -> TokenCounts:
    """Count tokens and show where each chunk of 75 begins, by the rules of the workers. LoRA tags take no tokens.

    Meant for use while a user types: it has a rate limit of its own, equal to the key's requests per minute but at least 150.
    Long prompts count as several.
    """
    prompts = wanted.model_dump(include={"prompt", "negative_prompt", "steps"})
    is_small = len(wanted.prompt) + len(wanted.negative_prompt) <= SMALL_CHARS
    here = is_small and not desk.rooms.prompts.is_crowded
    return TokenCounts(**desk.annex.do("count_tokens", here=here, embeddings=_embeddings(desk), **prompts).about)


def _embeddings(desk: Desk) -> list[tuple[str, int]]:
    with desk.db.transaction() as session:
        rows = registry.weights(session, Kind.EMBEDDING, silent_after_s=desk.settings.lease_seconds)
    # Without a length it was announced by a worker of an older release.
    return [(row.name, row.vectors or 1) for row in rows]
