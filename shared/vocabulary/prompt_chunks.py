"""Prompt chunks as A1111 makes them for CLIP: 75 tokens each, broken at a comma near the end, embeddings kept whole. Pure."""

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from shared.errors import InvalidRequest

CHUNK_TOKENS = 75  # CLIP reads 77: these, a start and an end token
COMMA_BACKTRACK = 20  # a full chunk breaks after a comma if one is among its last 20 tokens
MAX_CHUNKS = 64  # per text; 4928 tokens
PLACEHOLDER_ID = 0


class EmbeddedWord(Protocol):
    """A textual-inversion embedding. It takes as many tokens as it has vectors."""

    @property
    def name(self) -> str:
        """The word that stands for it in prompts."""

    def __len__(self) -> int:
        """Return how many tokens it takes."""


# Frozen without slots: together with generics they break in Python 3.11.
E = TypeVar("E", bound=EmbeddedWord)


@dataclass(frozen=True)
class Placed(Generic[E]):
    """An embedding whose first vector stands at `offset` among the 75 tokens of a chunk."""

    offset: int
    embedding: E


@dataclass(frozen=True)
class Chunk(Generic[E]):
    """Up to 75 tokens as (id, weight); the end token fills up the rest. Embeddings stand in for the placeholders they cover."""

    slots: tuple[tuple[int, float], ...] = ()
    placed: tuple[Placed[E], ...] = ()


class Chunker(Generic[E]):
    """Packs tokens into chunks. Embeddings never straddle two, and a full chunk breaks at its last comma if that is near."""

    def __init__(self, comma_id: int | None) -> None:
        self._comma_id = comma_id
        self._done: list[Chunk[E]] = []
        self._slots: list[tuple[int, float]] = []
        self._placed: list[Placed[E]] = []
        self._after_comma = 0

    def add(self, token: int, weight: float) -> None:
        """Take the next token."""
        self._make_room(moves_words=token != self._comma_id)
        self._slots.append((token, weight))
        if token == self._comma_id:
            self._after_comma = len(self._slots)

    def place(self, embedding: E, weight: float) -> None:
        """Take an embedding."""
        self._make_room(moves_words=True)
        if len(self._slots) + len(embedding) > CHUNK_TOKENS:
            self.end_chunk()
        self._placed.append(Placed(len(self._slots), embedding))
        self._slots += [(PLACEHOLDER_ID, weight)] * len(embedding)

    def end_chunk(self, at: int = CHUNK_TOKENS) -> None:
        """Close the chunk; tokens from `at` on move to the next. Raises `InvalidRequest` beyond `MAX_CHUNKS`."""
        if len(self._done) == MAX_CHUNKS:
            raise InvalidRequest(f"The prompt is longer than {MAX_CHUNKS} chunks of {CHUNK_TOKENS} tokens.")
        stay = tuple(placed for placed in self._placed if placed.offset < at)
        move = self._placed[len(stay) :]
        self._done.append(Chunk(tuple(self._slots[:at]), stay))
        self._slots = self._slots[at:]
        self._placed = [Placed(placed.offset - at, placed.embedding) for placed in move]
        self._after_comma = 0

    def finish(self) -> tuple[Chunk[E], ...]:
        """Return all chunks; an empty text is one empty chunk."""
        if self._slots or not self._done:
            self.end_chunk()
        return tuple(self._done)

    def _make_room(self, *, moves_words: bool) -> None:
        if len(self._slots) == CHUNK_TOKENS:
            is_near = CHUNK_TOKENS - self._after_comma < COMMA_BACKTRACK
            self.end_chunk(self._after_comma if moves_words and is_near else CHUNK_TOKENS)
