"""Small vocabulary: the few of CLIP's 49408 tokens that captions use, and its expansion to all of them.

Training sees a word table with one row per used token plus a last row for every other; `spread` copies it into CLIP's full
table, where each token that no caption uses gets the "unknown" row.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from deploy.standalone.training.captions import UNKNOWN, words

TOKENIZER_DIR = Path(__file__).parents[3] / "shared/vocabulary/clip"
CLIP_TOKENS, CLIP_BEGIN, CLIP_END = 49408, 49406, 49407
POSITIONS = 77


class Vocabulary:
    """Turns captions into rows of the small word table."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self._tokenizer = tokenizer
        self.tokens: tuple[int, ...] = tuple(sorted({t for word in words() for t in self._ids(word, whole=True)}))
        self._row = {token: row for row, token in enumerate(self.tokens)}
        self._rows_of_word: dict[str, tuple[int, ...]] = {UNKNOWN: (self.unknown,)}

    @classmethod
    def of_clip(cls) -> "Vocabulary":
        """Return the vocabulary that the captions need of CLIP's tokenizer."""
        return cls(CLIPTokenizer.from_pretrained(TOKENIZER_DIR, local_files_only=True))

    @property
    def size(self) -> int:
        """How many rows the small word table has."""
        return len(self.tokens) + 1

    @property
    def unknown(self) -> int:
        """The row of every token that no caption uses."""
        return len(self.tokens)

    @property
    def begin(self) -> int:
        """The row of the token before the first word."""
        return self._row[CLIP_BEGIN]

    @property
    def end(self) -> int:
        """The row of the token after the last word, which also fills the rest."""
        return self._row[CLIP_END]

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Return the rows of each caption, (captions, 77), long ones cut off."""
        return torch.tensor([self._encoded(text) for text in captions])

    def spread(self, table: Tensor) -> Tensor:
        """Copy the small word table into one with a row for each of CLIP's tokens."""
        full = table[self.unknown].repeat(CLIP_TOKENS, 1)
        full[torch.tensor(self.tokens)] = table[: self.unknown]
        return full

    def _encoded(self, text: str) -> list[int]:
        rows = [row for word in text.split() for row in self._word(word)][: POSITIONS - 2]
        return [self.begin, *rows, *[self.end] * (POSITIONS - 1 - len(rows))]

    def _word(self, word: str) -> Iterable[int]:
        if word not in self._rows_of_word:
            ids = self._ids(word, whole=False)
            self._rows_of_word[word] = tuple(self._row.get(token, self.unknown) for token in ids)
        return self._rows_of_word[word]

    def _ids(self, word: str, *, whole: bool) -> list[int]:
        ids: list[int] = self._tokenizer(word).input_ids
        return ids if whole else ids[1:-1]
