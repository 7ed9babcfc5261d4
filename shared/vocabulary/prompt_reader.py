"""Tokenises prompts into a `Script`: the tokens and weights that the UNet reads at each step. A1111's semantics.

It parses with `prompt_grammar` and needs no checkpoint: the tokenizer is CLIP's, the same for every Stable Diffusion 1.5; its
files lie in `clip/`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Generic

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from shared.errors import InvalidRequest
from shared.vocabulary import prompt_grammar as grammar
from shared.vocabulary.prompt_chunks import CHUNK_TOKENS, Chunk, Chunker, E

CLIP_DIR = Path(__file__).with_name("clip")
MAX_PARTS = 16  # joined by AND; each is a sample of every UNet call
MAX_DISTINCT_CHUNKS = 256  # to encode for one script
WORD_END = "</w>"
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

Triggers = dict[int, list[tuple[list[int], E]]]
Text = tuple[Chunk[E], ...]


@dataclass(frozen=True)
class Row(Generic[E]):
    """One row of the UNet's batch: its weight, and its texts, each with the last step that reads it (counted from 1)."""

    weight: float
    timeline: tuple[tuple[int, Text[E]], ...]


@dataclass(frozen=True)
class Script(Generic[E]):
    """The conditioning of one image, as tokens: the negative prompt first if guided, then the parts of the prompt.

    All texts have the same number of chunks.
    """

    rows: tuple[Row[E], ...]
    guided: bool
    clip_skip: int

    @property
    def samples(self) -> int:
        """Rows of the UNet's batch."""
        return len(self.rows)

    @property
    def tokens(self) -> int:
        """Length of the context, start and end tokens included."""
        return (CHUNK_TOKENS + 2) * len(self.rows[0].timeline[0][1])


class PromptReader(Generic[E]):
    """Reads prompts. Thread-safe."""

    def __init__(self) -> None:
        self._tokenizer = tokenizer()
        self._comma_id = self._tokenizer.token_to_id("," + WORD_END)
        self._triggers = lru_cache(4)(self._triggers_of)

    def read(
        self,
        prompt: str,
        negative_prompt: str | None,
        *,
        steps: int,
        clip_skip: int = 1,
        first_pass_steps: int | None = None,
        embeddings: tuple[E, ...] = (),
    ) -> Script[E]:
        """Tokenise a prompt without its LoRA tags. `first_pass_steps` is set for the second pass of hires fix.

        Without a negative prompt the script is unguided, unless the prompt has parts or a weight: these are relative to a
        negative prompt, so it gets an empty one. Raises `InvalidRequest` beyond the limits above.
        """
        rows = list(grammar.parts(prompt))
        if len(rows) > MAX_PARTS:
            raise InvalidRequest(f"The prompt has {len(rows)} parts joined by AND; at most {MAX_PARTS} are allowed.")
        guided = negative_prompt is not None or rows[0][1] != 1 or len(rows) > 1
        if guided:
            rows.insert(0, (negative_prompt or "", 1.0))
        # A text is read as soon as it is made: the first chunk too many ends both.
        texts = _Texts(partial(self._chunks, triggers=self._triggers(embeddings)))
        timelines = [
            tuple((last_step, texts.read(entry)) for last_step, entry in unfolded)
            for unfolded in (grammar.timeline(text, steps, first_pass_steps=first_pass_steps) for text, _ in rows)
        ]
        filled = (tuple((last_step, texts.filled(text)) for last_step, text in timeline) for timeline in timelines)
        weights = (weight for _, weight in rows)
        return Script(tuple(map(Row, weights, filled)), guided, clip_skip)

    def opening(self, chunk: Chunk[E], *, words: int) -> str:
        """Return the first `words` words of a chunk as the tokenizer spells them, embeddings by name."""
        names = {placed.offset: placed.embedding for placed in chunk.placed}
        found, pieces, position = list[str](), "", 0
        while position < len(chunk.slots) and len(found) < words:
            if embedding := names.get(position):
                found.append(embedding.name)
                position += len(embedding)
                continue
            pieces += self._tokenizer.id_to_token(chunk.slots[position][0]) or ""
            position += 1
            if pieces.endswith(WORD_END):
                found.append(decoders.ByteLevel().decode([pieces.removesuffix(WORD_END)]))
                pieces = ""
        return " ".join(found)

    def _chunks(self, text: str, triggers: Triggers[E]) -> Text[E]:
        chunker: Chunker[E] = Chunker(self._comma_id)
        for index, stretch in enumerate(grammar.segments(text)):
            if index:
                chunker.end_chunk()
            for segment in stretch:
                self._feed(chunker, self._ids(segment.text), segment.weight, triggers)
        return chunker.finish()

    def _feed(self, chunker: Chunker[E], ids: list[int], weight: float, triggers: Triggers[E]) -> None:
        position = 0
        while position < len(ids):
            for trigger, embedding in triggers.get(ids[position], ()):
                if ids[position : position + len(trigger)] == trigger:
                    chunker.place(embedding, weight)
                    position += len(trigger)
                    break
            else:
                chunker.add(ids[position], weight)
                position += 1

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _triggers_of(self, embeddings: tuple[E, ...]) -> Triggers[E]:
        """Return the embeddings by the first token of their names, the longest name first."""
        triggers: Triggers[E] = {}
        for embedding in embeddings:
            if ids := self._ids(embedding.name):
                triggers.setdefault(ids[0], []).append((ids, embedding))
        for candidates in triggers.values():
            candidates.sort(key=lambda candidate: len(candidate[0]), reverse=True)
        return triggers


class _Texts(Generic[E]):
    """The texts of a script in chunks, each read once."""

    def __init__(self, read: Callable[[str], Text[E]]) -> None:
        self._read = read
        self._texts: dict[str, Text[E]] = {}
        self._distinct: set[Chunk[E]] = set()

    def read(self, entry: str) -> Text[E]:
        """Return an entry in chunks. Raises `InvalidRequest` for more different ones than a script may have."""
        if entry not in self._texts:
            self._texts[entry] = self._read(entry)
            self._distinct.update(self._texts[entry])
            if len(self._distinct) > MAX_DISTINCT_CHUNKS:
                raise InvalidRequest(f"The prompt needs more than {MAX_DISTINCT_CHUNKS} different chunks of tokens.")
        return self._texts[entry]

    def filled(self, text: Text[E]) -> Text[E]:
        """Return a text with as many empty chunks as it is shorter than the longest one."""
        return text + (Chunk(),) * (self._longest - len(text))

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._texts.values()))


@lru_cache(1)
def tokenizer() -> Tokenizer:
    """Return CLIP's tokenizer, as transformers' `CLIPTokenizer` sets it up. Threads share it: do not change it."""
    vocabulary, merges = str(CLIP_DIR / "vocab.json"), str(CLIP_DIR / "merges.txt")
    end = "<|endoftext|>"
    clip = Tokenizer(BPE.from_file(vocabulary, merges, unk_token=end, end_of_word_suffix=WORD_END))
    clip.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    clip.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    clip.add_special_tokens([AddedToken("<|startoftext|>", normalized=True), AddedToken(end, normalized=False)])
    return clip
