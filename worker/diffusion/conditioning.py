"""Prompts as the UNet reads them, in two acts: any thread reads text into a `Script` of tokens, the engine's thread encodes it.

Chunks of 75 tokens, attention weights, prompt editing, AND and clip skip are A1111's; the grammar is `shared.prompt`'s.
Every chunk is encoded by itself, so its bits depend on nothing but the chunk.
"""

from bisect import bisect_left
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from shared import prompt as grammar
from shared.errors import InvalidRequest
from worker.diffusion.checkpoint import Checkpoint
from worker.diffusion.textual_inversion import Embedding, Placed, injected
from worker.diffusion.transfer import sent

CHUNK_TOKENS = 75  # CLIP reads 77: these, a start and an end token
COMMA_BACKTRACK = 20  # a full chunk breaks after a comma if one is among its last 20 tokens
MAX_CHUNKS = 64  # per text; 4928 tokens
MAX_PARTS = 16  # joined by AND; each is a sample of every UNet call
MAX_DISTINCT_CHUNKS = 256  # to encode for one script
CACHED_CHUNKS = 512  # 0.12 MB each at 768 wide in fp16; negative prompts repeat almost always
CACHED_STACKS = 4  # per image; `[a|b]` goes back and forth between two
PLACEHOLDER_ID = 0

Triggers = dict[int, list[tuple[list[int], Embedding]]]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Up to 75 tokens as (id, weight); the end token fills up the rest. Embeddings stand in for the placeholders they cover."""

    slots: tuple[tuple[int, float], ...] = ()
    placed: tuple[Placed, ...] = ()


Text = tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One sample of an image's UNet calls: its weight, and what it reads up to and with which step, counted from 1."""

    weight: float
    timeline: tuple[tuple[int, Text], ...]


@dataclass(frozen=True, slots=True)
class Script:
    """All that an image's UNet calls will read. The negative prompt comes first if guided, then the parts of the prompt.

    Every text in it has the same number of chunks.
    """

    rows: tuple[Row, ...]
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


class PromptReader:
    """Reads prompts with one checkpoint's tokenizer. Any thread may read."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        # A copy of its own: the library changes the truncation of a shared one under a reading thread ("Already borrowed").
        self._tokenizer: Any = Tokenizer.from_str(checkpoint.tokenizer.backend_tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._comma_id = self._tokenizer.token_to_id(",</w>")
        self._triggers = lru_cache(4)(self._triggers_of)

    def read(
        self,
        prompt: str,
        negative_prompt: str | None,
        *,
        steps: int,
        clip_skip: int = 1,
        first_pass_steps: int | None = None,
        embeddings: tuple[Embedding, ...] = (),
    ) -> Script:
        """Tokenise a prompt whose LoRA tags are gone. `first_pass_steps` is set for the second pass of hires fix.

        Without a negative prompt the script is unguided, unless the prompt has parts or a weight: these are relative to a
        negative prompt, so it gets an empty one. Raises `InvalidRequest` for a prompt beyond the limits above.
        """
        rows = list(grammar.parts(prompt))
        if len(rows) > MAX_PARTS:
            raise InvalidRequest(f"The prompt has {len(rows)} parts joined by AND; {MAX_PARTS} are the most.")
        guided = negative_prompt is not None or rows[0][1] != 1 or len(rows) > 1
        if guided:
            rows.insert(0, (negative_prompt or "", 1.0))
        timelines = [grammar.timeline(text, steps, first_pass_steps=first_pass_steps) for text, _ in rows]
        texts = self._texts({entry for timeline in timelines for _, entry in timeline}, self._triggers(embeddings))
        read = (tuple((last_step, texts[entry]) for last_step, entry in timeline) for timeline in timelines)
        weights = (weight for _, weight in rows)
        return Script(tuple(map(Row, weights, read)), guided, clip_skip)

    def _texts(self, entries: set[str], triggers: Triggers) -> dict[str, Text]:
        """Return the entries in chunks, the shorter ones filled up with empty chunks to the length of the longest."""
        texts: dict[str, Text] = {}
        distinct: set[Chunk] = set()
        for entry in entries:
            texts[entry] = self._chunks(entry, triggers)
            distinct.update(texts[entry])
            if len(distinct) > MAX_DISTINCT_CHUNKS:
                raise InvalidRequest(f"The prompt takes more than {MAX_DISTINCT_CHUNKS} different chunks of tokens.")
        length = max(map(len, texts.values()))
        return {entry: text + (Chunk(),) * (length - len(text)) for entry, text in texts.items()}

    def _chunks(self, text: str, triggers: Triggers) -> Text:
        chunker = _Chunker(self._comma_id)
        for index, stretch in enumerate(grammar.segments(text)):
            if index:
                chunker.end_chunk()
            for segment in stretch:
                self._feed(chunker, self._ids(segment.text), segment.weight, triggers)
        return chunker.finish()

    def _feed(self, chunker: "_Chunker", ids: list[int], weight: float, triggers: Triggers) -> None:
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
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _triggers_of(self, embeddings: tuple[Embedding, ...]) -> Triggers:
        """Return the embeddings by the first token of their names, the longest name first."""
        triggers: Triggers = {}
        for embedding in embeddings:
            if ids := self._ids(embedding.name):
                triggers.setdefault(ids[0], []).append((ids, embedding))
        for candidates in triggers.values():
            candidates.sort(key=lambda candidate: len(candidate[0]), reverse=True)
        return triggers


class PromptEncoder:
    """Encodes scripts with one checkpoint's text encoder and remembers the last chunks. Belongs to the engine's thread."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._encoded = lru_cache(CACHED_CHUNKS)(self._encode)

    @torch.inference_mode()
    def encode(self, script: Script, text_loras: Hashable = None) -> "Conditions":
        """Encode all that a script will need. `text_loras` names the LoRAs that the text encoder carries at the moment.

        Raises `InvalidRequest` for a clip skip deeper than the text encoder.
        """
        layers = self._checkpoint.text_encoder.config.num_hidden_layers
        if not 1 <= script.clip_skip <= layers:
            raise InvalidRequest(f"clip_skip {script.clip_skip}: this checkpoint's text encoder has {layers} layers.")
        texts = {id(text): text for row in script.rows for _, text in row.timeline}
        chunks = {chunk for text in texts.values() for chunk in text}
        return Conditions(script, {chunk: self._encoded(chunk, script.clip_skip, text_loras) for chunk in chunks})

    def _encode(self, chunk: Chunk, clip_skip: int, _text_loras: Hashable) -> Tensor:
        """Return (77, width)."""
        tokenizer, encoder = self._checkpoint.tokenizer, self._checkpoint.text_encoder
        filling = CHUNK_TOKENS + 1 - len(chunk.slots)
        ids = [tokenizer.bos_token_id, *(token for token, _ in chunk.slots), *[tokenizer.eos_token_id] * filling]
        weights = [1.0, *(weight for _, weight in chunk.slots), *[1.0] * filling]
        with injected(encoder, [chunk.placed]):
            output = encoder(sent(torch.tensor([ids]), self._checkpoint.device), output_hidden_states=clip_skip > 1)
        if clip_skip == 1:
            states = output.last_hidden_state
        else:
            # Transformers before and after 5.6: the norm lies in `text_model` or in the encoder itself.
            states = getattr(encoder, "text_model", encoder).final_layer_norm(output.hidden_states[-clip_skip])
        return _emphasized(states[0], weights)


class Conditions:
    """What an image's UNet calls read, step by step, and how their predictions become one.

    `weights` are those of the positive rows; `tokens` is the length of the context.
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
        """Join predictions (samples, channels, height, width) into one, (1, channels, height, width).

        Classifier-free guidance (arXiv:2207.12598), with several positives as in composable diffusion (arXiv:2206.01714).
        """
        if not self.guided:
            return prediction
        negative, positives = prediction[:1], prediction[1:]
        directions = [
            weight * (positive - negative) for weight, positive in zip(self.weights, positives.split(1), strict=True)
        ]
        return negative + guidance_scale * sum(directions[1:], directions[0])


class _Chunker:
    """Packs tokens into chunks. Embeddings never straddle two, and a full chunk breaks at its last comma if that is near."""

    def __init__(self, comma_id: int | None) -> None:
        self._comma_id = comma_id
        self._done: list[Chunk] = []
        self._slots: list[tuple[int, float]] = []
        self._placed: list[Placed] = []
        self._after_comma = 0

    def add(self, token: int, weight: float) -> None:
        self._make_room(moves_words=token != self._comma_id)
        self._slots.append((token, weight))
        if token == self._comma_id:
            self._after_comma = len(self._slots)

    def place(self, embedding: Embedding, weight: float) -> None:
        self._make_room(moves_words=True)
        vectors = len(embedding.vectors)
        if len(self._slots) + vectors > CHUNK_TOKENS:
            self.end_chunk()
        self._placed.append(Placed(len(self._slots), embedding))
        self._slots += [(PLACEHOLDER_ID, weight)] * vectors

    def end_chunk(self, at: int = CHUNK_TOKENS) -> None:
        """Close the present chunk; what stands behind `at` moves to the next."""
        if len(self._done) == MAX_CHUNKS:
            raise InvalidRequest(f"The prompt takes more than {MAX_CHUNKS} chunks of {CHUNK_TOKENS} tokens.")
        stay = tuple(placed for placed in self._placed if placed.offset < at)
        move = self._placed[len(stay) :]
        self._done.append(Chunk(tuple(self._slots[:at]), stay))
        self._slots = self._slots[at:]
        self._placed = [Placed(placed.offset - at, placed.embedding) for placed in move]
        self._after_comma = 0

    def finish(self) -> Text:
        if self._slots or not self._done:
            self.end_chunk()
        return tuple(self._done)

    def _make_room(self, *, moves_words: bool) -> None:
        if len(self._slots) == CHUNK_TOKENS:
            is_near = CHUNK_TOKENS - self._after_comma < COMMA_BACKTRACK
            self.end_chunk(self._after_comma if moves_words and is_near else CHUNK_TOKENS)


def _emphasized(states: Tensor, weights: list[float]) -> Tensor:
    """Multiply each token's states, (77, width), by its weight, then restore the mean of all: A1111's "Original" emphasis."""
    if all(weight == 1 for weight in weights):
        return states
    before = states.float()
    after = before * sent(torch.tensor(weights), states.device).unsqueeze(1)
    ratio = before.mean() / after.mean()
    return (after * torch.where(torch.isfinite(ratio), ratio, 1.0)).to(states.dtype)


def _text_at(row: Row, step: int) -> Text:
    """Return what a row reads in a step counted from 1; after its last step that is its last text."""
    return next((text for last_step, text in row.timeline if step <= last_step), row.timeline[-1][1])


def _stacked(texts: tuple[Text, ...], encoded: Mapping[Chunk, Tensor]) -> Tensor:
    return torch.stack([torch.cat([encoded[chunk] for chunk in text]) for text in texts])
