"""Textual inversion (arXiv:2208.01618): words with learned vectors, read from a folder and injected into CLIP's input.

Tokenizer and vocabulary stay as they are: a word's vectors replace the embeddings of placeholder tokens while CLIP runs. Vectors
stay in memory, so a change of a file does not affect a prompt that was read before.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import safetensors.torch
import structlog
import torch
from safetensors import SafetensorError
from torch import Tensor

from shared.errors import BadCheckpoint, StorageUnavailable, WeightsMissing
from shared.files.headers import read_header
from shared.files.weights import Shelf, WeightsFile
from shared.vocabulary.prompt_chunks import Placed
from worker.diffusion.transfer import to_device

MAX_VECTORS = 75  # an embedding never straddles two of CLIP's chunks

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """A word and its vectors, (n, width) float32 on the CPU. Two loads of one file are two different embeddings."""

    name: str
    vectors: Tensor

    def __len__(self) -> int:
        """Return its length in tokens."""
        return len(self.vectors)


def load(path: Path, width: int, *, name: str | None = None) -> Embedding:
    """Read an embedding: A1111's `emb_params`, `clip_l`, or a file of one tensor as diffusers writes it.

    It is named like its file unless a name is given.

    Raises `BadCheckpoint`, naming the file, if it is no embedding, its vectors are not `width` wide, or it was made for SDXL.
    """
    if not path.stem.isprintable():  # bytes that are no text would fail every prompt that is matched against them
        raise BadCheckpoint(f"{str(path)!r}: rename it; its name must be a word that a prompt can contain.")
    try:
        shapes = read_header(path)
        key = _key(path, list(shapes))
        shape = shapes[key].shape
        vectors_held = 1 if len(shape) == 1 else shape[0] if len(shape) == 2 else 0
        if not 1 <= vectors_held <= MAX_VECTORS or shape[-1] != width:
            raise BadCheckpoint(f"{path}: holds {shape} numbers; 1 to {MAX_VECTORS} vectors of {width} were expected.")
        # Read, not mapped: touching a mapped file that someone has since truncated ends the process.
        vectors = safetensors.torch.load(path.read_bytes())[key].float().reshape(-1, width)
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:  # the last three if it was replaced just now
        raise BadCheckpoint(f"{path}: cannot be read ({error}).") from error
    if not torch.isfinite(vectors).all():
        raise BadCheckpoint(f"{path}: holds infinite numbers or not-a-numbers.")
    return Embedding(name or path.stem, vectors)


class Embeddings:
    """The embeddings of a folder and of a shelf, of vectors of one width. Thread-safe."""

    def __init__(self, folder: Path | None, width: int, *, shelf: Shelf | None = None) -> None:
        self._folder = folder
        self._width = width
        self._shelf = shelf
        self._stamps_read: dict[Path, tuple[int, int]] = {}
        self._loaded: dict[Path, Embedding] = {}
        self._lock = Lock()

    def rescan(self, *texts: str) -> tuple[Embedding, ...]:
        """Return the present embeddings, sorted by name. Reads only files that are new or have changed.

        A file that is no embedding is logged, once, and left out; an embedding whose file turns bad keeps its last vectors.
        Raises `WeightsMissing` or `StorageUnavailable` for one that cannot be fetched now, if one of the texts may name it.
        """
        with self._lock:
            shelved = {file.path: file for file in self._shelf.files().values()} if self._shelf else {}
            present = {path: file.stamp for path, file in shelved.items()}
            present |= _stamps(self._folder) if self._folder else {}
            self._loaded = {path: embedding for path, embedding in self._loaded.items() if path in present}
            for path, stamp in present.items():
                if self._stamps_read.get(path) != stamp and self._is_here(shelved.get(path), texts):
                    self._read(path, shelved.get(path))
                    self._stamps_read[path] = stamp
            self._stamps_read = {path: stamp for path, stamp in self._stamps_read.items() if path in present}
            return tuple(sorted(self._loaded.values(), key=lambda embedding: embedding.name))

    def _is_here(self, file: WeightsFile | None, texts: tuple[str, ...]) -> bool:
        """Whether a file is there to be read, fetched if need be."""
        if file is None or self._shelf is None:
            return True
        try:
            self._shelf.fetched(file)
        except (WeightsMissing, StorageUnavailable) as error:
            if any(_squeezed(file.name) in _squeezed(text) for text in texts):
                raise
            log.warning("embedding.not_fetched", name=file.name, reason=str(error))
            return False
        return True

    def _read(self, path: Path, file: WeightsFile | None) -> None:
        try:
            self._loaded[path] = load(path, self._width, name=file.name if file else None)
        except BadCheckpoint as error:
            log.warning("embedding.refused", reason=str(error))


def _squeezed(text: str) -> str:
    return "".join(text.split()).casefold()


@contextmanager
def injected(text_encoder: Any, rows: Sequence[Sequence[Placed[Embedding]]]) -> Iterator[None]:
    """Within the block, replace placeholder tokens in the text encoder's input by their embeddings; `rows` as in its batch."""

    def replace(_module: Any, _args: Any, tokens: Tensor) -> Tensor:
        tokens = tokens.clone()
        for row, placed in zip(tokens, rows, strict=True):
            for one in placed:
                start = 1 + one.offset  # the start token comes first
                row[start : start + len(one.embedding)] = to_device(one.embedding.vectors, row.device)
        return tokens

    hook = text_encoder.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()


def _key(path: Path, names: list[str]) -> str:
    if "clip_g" in names:
        raise BadCheckpoint(f"{path}: this embedding was made for SDXL; the farm serves Stable Diffusion 1.5.")
    for name in ("emb_params", "clip_l"):
        if name in names:
            return name
    if len(names) != 1:
        raise BadCheckpoint(f"{path}: not a textual inversion embedding ({len(names)} tensors).")
    return names[0]


def _stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return the folder's safetensors files, each with its time and size to detect changes. A missing folder is empty."""
    try:
        return {path: _stamp(path) for path in folder.glob("[!.]*.safetensors")}
    except OSError as error:
        log.warning("embedding.folder_unreadable", folder=str(folder), reason=str(error))
        return {}


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:  # gone since, or a link to nowhere
        return 0, 0
    return stat.st_mtime_ns, stat.st_size
