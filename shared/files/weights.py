"""LoRAs, textual-inversion embeddings and VAEs on disk. Reads safetensors headers only.

A file that cannot be loaded is logged once, in one line, and never hides the others.
"""

import os
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from threading import Lock
from typing import Protocol

import structlog

from shared.errors import BadWeights, WeightsMissing
from shared.files import headers
from shared.files.checkpoints import PICKLES, SD15_CONTEXT_WIDTH
from shared.files.headers import Header

# What a folder held is believed for so long; jobs would otherwise look through it each.
BELIEVED_S = 2.0
# Unlike a checkpoint's, these names stand in prompts and not in URLs: spaces and any script are common and fine, but nothing
# that ends a tag, separates its parts, or makes a path.
NAME = re.compile(r"[^\s<>:/\\][^<>:/\\]{0,99}(?<!\s)")
MADE_FOR = {1024: "Stable Diffusion 2", 2048: "SDXL"}  # by the width of the prompts that their UNets read

Stamp = tuple[int, int]

log = structlog.get_logger(__name__)


class Kind(StrEnum):
    """Kinds of weights files."""

    LORA = "lora"
    EMBEDDING = "embedding"
    VAE = "vae"


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """Weights that look loadable.

    `alias` is the LoRA's name in its training metadata; `stamp` changes when the file does; `vectors` is how many tokens an
    embedding takes, None for the other kinds.
    """

    kind: Kind
    name: str
    path: Path
    size_bytes: int
    alias: str | None
    stamp: Stamp
    vectors: int | None = None


def inspect(kind: Kind, path: Path, *, context_width: int = SD15_CONTEXT_WIDTH) -> WeightsFile:
    """Read the header of one file. Raises `BadWeights` with one line: the file and what is wrong with it."""
    if not (NAME.fullmatch(path.stem) and path.stem.isprintable()):
        raise BadWeights(f"{str(path)!r}: rename it; a name has up to 100 printable characters and none of < > : / \\.")
    if path.suffix.lower() in PICKLES:
        raise BadWeights(f"{path}: a pickle can run code when it is loaded; convert it to .safetensors first.")
    if path.suffix != ".safetensors":
        raise BadWeights(f"{path}: not a .safetensors file.")
    try:
        stamp = _stamp(path.stat())
        raw = headers.read_raw(path)
    except OSError as error:
        raise BadWeights(f"{path}: cannot be read ({error.strerror}).") from error
    return recognised(kind, path, raw, stamp, context_width=context_width)


def recognised(kind: Kind, path: Path, raw: bytes, stamp: Stamp, *, context_width: int) -> WeightsFile:
    """Return what the JSON of its header tells of a file. Raises `BadWeights`, naming the path, if it is not of this kind."""
    header = headers.parsed(path, raw, stamp[1])
    if complaint := _COMPLAINTS[kind](header, context_width):
        raise BadWeights(f"{path}: {complaint}")
    alias = _alias(raw, path.stem) if kind is Kind.LORA else None
    vectors = _vectors(header) if kind is Kind.EMBEDDING else None
    return WeightsFile(kind, path.stem, path, stamp[1], alias, stamp, vectors)


@dataclass(frozen=True, slots=True)
class HeldFile:
    """A file that is held elsewhere, and lies at `path` once it has been fetched. `packed` is its header's JSON, by zlib."""

    name: str
    path: Path
    stamp: Stamp
    packed: bytes

    @property
    def raw(self) -> bytes:
        """Return the JSON of its header."""
        return zlib.decompress(self.packed)


class Elsewhere(Protocol):
    """Where weights come from that lie in no folder of this machine."""

    def held(self, kind: str) -> Mapping[str, HeldFile]:
        """Return by name what was seen last; it waits for nothing."""

    def fetch(self, path: Path) -> None:
        """See that a held file lies at its path. Raises `WeightsMissing` or `StorageUnavailable`."""


class Shelf:
    """The weights of one kind: of a folder with its subfolders, and what is held elsewhere. Thread-safe.

    The folder is scanned again when asked after `BELIEVED_S`. Its file is taken where both have one of a name.
    """

    def __init__(
        self,
        kind: Kind,
        folder: Path | None,
        *,
        elsewhere: Elsewhere | None = None,
        context_width: int = SD15_CONTEXT_WIDTH,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.kind = kind
        self._elsewhere = elsewhere
        self.folder = folder.expanduser() if folder else None
        self._context_width = context_width
        self._clock = clock
        self._lock = Lock()
        self._looked_at = float("-inf")
        self._seen: dict[Path, _Seen] = {}
        self._files: dict[str, WeightsFile] = {}
        self._refused: dict[Path, str] = {}

    def files(self) -> Mapping[str, WeightsFile]:
        """Return the loadable files by name. One that turns bad stays listed as it was: an engine may have it in memory."""
        with self._lock:
            if self._clock() - self._looked_at >= BELIEVED_S:
                self._scan()
                self._looked_at = self._clock()
            return self._files

    @property
    def refused(self) -> Mapping[Path, str]:
        """Why files, or the folder itself, cannot be used now, by path."""
        self.files()
        with self._lock:
            return dict(self._refused)

    def find(self, name: str) -> WeightsFile:
        """Find a file by name or alias, ignoring case; it may have to be `fetched`.

        Raises `WeightsMissing`: another worker may have it.
        """
        files = self.files()
        spellings = {file.alias.casefold(): file for file in files.values() if file.alias}
        spellings |= {file.name.casefold(): file for file in files.values()}
        file = files.get(name) or spellings.get(name.casefold())
        if file is None:
            raise WeightsMissing(f"This worker has no {self.kind} named {name!r}. {self._hint(name, spellings)}")
        return file

    def fetched(self, file: WeightsFile) -> WeightsFile:
        """Return a file that lies at its path now. Raises `WeightsMissing` or `StorageUnavailable`."""
        if self._elsewhere is not None and self._is_held(file):
            self._elsewhere.fetch(file.path)
        return file

    def _is_held(self, file: WeightsFile) -> bool:
        held = self._elsewhere.held(self.kind).get(file.name) if self._elsewhere else None
        return held is not None and held.path == file.path

    def _hint(self, name: str, spellings: Mapping[str, WeightsFile]) -> str:
        for path, reason in self.refused.items():
            if path.stem.casefold() == name.casefold():
                return f"The file cannot be used: {reason}"
        close = get_close_matches(name.casefold(), spellings, n=3)
        return f"Close: {', '.join(spellings[spelling].name for spelling in close) or 'none'}."

    def _scan(self) -> None:
        refused: dict[Path, str] = {}
        files: dict[str, WeightsFile] = {}
        stamps = _stamped(self.folder, refused) if self.folder else {}
        seen = {path: self._inspected(path, stamp) for path, stamp in stamps.items()}
        seen |= {one.path: self._recognised(one) for one in self._held() if one.path not in seen}
        self._seen = seen
        for path, one in seen.items():
            if one.complaint is not None:
                refused[path] = one.complaint
            # What a folder has under the name of a held file is taken; of two in folders one has the wrong name.
            if one.file is not None and files.setdefault(one.file.name, one.file) is not one.file and path in stamps:
                refused[path] = f"{path}: the name {one.file.name} is taken by {files[one.file.name].path}; rename one."
        for path, reason in refused.items():
            if self._refused.get(path) != reason:
                log.warning("weights.refused", kind=self.kind, reason=reason)
        self._files, self._refused = files, refused

    def _held(self) -> Iterable[HeldFile]:
        return self._elsewhere.held(self.kind).values() if self._elsewhere else ()

    def _recognised(self, one: HeldFile) -> "_Seen":
        before = self._seen.get(one.path)
        if before is not None and before.stamp == one.stamp:
            return before
        called = one.path.with_name(f"{one.name}.safetensors")  # its own name is its digest
        try:
            file = recognised(self.kind, called, one.raw, one.stamp, context_width=self._context_width)
        except BadWeights as error:
            return _Seen(one.stamp, None, str(error))
        return _Seen(one.stamp, replace(file, path=one.path), None)

    def _inspected(self, path: Path, stamp: Stamp) -> "_Seen":
        before = self._seen.get(path)
        if before is not None and before.stamp == stamp:
            return before
        try:
            return _Seen(stamp, inspect(self.kind, path, context_width=self._context_width), None)
        except BadWeights as error:
            return _Seen(stamp, before.file if before else None, str(error))


@dataclass(frozen=True, slots=True)
class Shelves:
    """The weights folders of one worker."""

    loras: Shelf
    embeddings: Shelf
    vaes: Shelf

    @classmethod
    def at(
        cls,
        *,
        loras: Path | None = None,
        embeddings: Path | None = None,
        vaes: Path | None = None,
        elsewhere: Elsewhere | None = None,
        context_width: int = SD15_CONTEXT_WIDTH,
    ) -> "Shelves":
        """Open folders and what is held elsewhere, for checkpoints whose prompts are `context_width` wide."""
        return cls(
            Shelf(Kind.LORA, loras, elsewhere=elsewhere, context_width=context_width),
            Shelf(Kind.EMBEDDING, embeddings, elsewhere=elsewhere, context_width=context_width),
            Shelf(Kind.VAE, vaes, elsewhere=elsewhere, context_width=context_width),
        )

    def __iter__(self) -> Iterator[Shelf]:
        return iter((self.loras, self.embeddings, self.vaes))


@dataclass(frozen=True, slots=True)
class _Seen:
    """A path's last loadable file, and what is wrong with the present one."""

    stamp: Stamp
    file: WeightsFile | None
    complaint: str | None


def _stamped(folder: Path, refused: dict[Path, str], depth: int = 1) -> dict[Path, Stamp]:
    """Return the candidate files of a folder and its subfolders with their stamps; add unreadable folders to `refused`."""
    found: dict[Path, Stamp] = {}
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        refused[folder] = f"{folder}: the folder cannot be read ({error.strerror})."
        return found
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith("."):
            continue
        if depth and entry.is_dir():
            found |= _stamped(path, refused, depth - 1)
        elif path.suffix == ".safetensors" or path.suffix.lower() in PICKLES:
            found[path] = _stamp_of(path)
    return found


def _stamp_of(path: Path) -> Stamp:
    try:
        return _stamp(path.stat())
    except OSError:  # gone since, or a link to nowhere; looking at it says so
        return 0, 0


def _stamp(stat: os.stat_result) -> Stamp:
    return stat.st_mtime_ns, stat.st_size


def _alias(raw: bytes, name: str) -> str | None:
    """Return the name in kohya's training metadata of a LoRA (`ss_output_name`)."""
    alias = headers.metadata(raw).get("ss_output_name")
    is_name = isinstance(alias, str) and NAME.fullmatch(alias) and alias.isprintable()
    return alias if is_name and alias != name else None


def _lora_complaint(header: Header, context_width: int) -> str | None:
    if any(name.startswith(("lora_te2_", "text_encoder_2.")) for name in header):
        return "this LoRA was made for SDXL; the farm serves Stable Diffusion 1.5."
    if not any("lora_" in name or "hada_" in name or ".lora." in name or ".lokr_" in name for name in header):
        return _other_kind(header) or "this is not a LoRA (no LoRA tensor is in it)."
    for name, tensor in header.items():
        # The layers that read prompts tell SD1.5 from all that came later.
        reads = "attn2" in name and ("to_k" in name or "to_v" in name)
        if reads and name.endswith(("lora_down.weight", "lora_A.weight", "lora.down.weight", "hada_w1_b")):
            width = tensor.shape[1] if len(tensor.shape) > 1 else 0
            if width != context_width:
                made_for = f", as {MADE_FOR[width]}'s are" if width in MADE_FOR else ""
                return f"this LoRA reads prompts {width} wide{made_for}; the checkpoint's are {context_width}."
    return None


def _embedding_complaint(header: Header, context_width: int) -> str | None:
    if "clip_g" in header:
        return "this embedding was made for SDXL; the farm serves Stable Diffusion 1.5."
    key = _vectors_key(header)
    if key is None:
        return _other_kind(header) or f"this is not a textual inversion embedding ({len(header)} tensors)."
    shape = header[key].shape
    if not 1 <= len(shape) <= 2 or shape[-1] != context_width or not _vectors(header):
        return f"this embedding's numbers are {shape}; vectors of {context_width} were expected."
    return None


def _vae_complaint(header: Header, _context_width: int) -> str | None:
    names = {name.removeprefix("first_stage_model.") for name in header}
    if any(name.startswith("model.diffusion_model.") for name in names):
        return "this is a whole checkpoint, not a VAE."
    if "decoder.conv_in.weight" not in names or "encoder.conv_in.weight" not in names:
        half = any(name.startswith(("decoder.", "encoder.")) for name in names)
        return (
            "this is half a VAE; encoder and decoder are needed."
            if half
            else _other_kind(header) or "this is not a VAE."
        )
    return None


def _other_kind(header: Header) -> str | None:
    """Name the kind of a file that lies in the wrong folder; None if it is unknown."""
    if any(name.startswith("model.diffusion_model.") for name in header):
        return "this is a whole checkpoint; it belongs into the checkpoint folder."
    if any("lora_" in name or "hada_" in name or ".lora." in name for name in header):
        return "this is a LoRA; it belongs into the LoRA folder."
    if any(name.removeprefix("first_stage_model.") == "decoder.conv_in.weight" for name in header):
        return "this is a VAE; it belongs into the VAE folder."
    if _vectors_key(header) is not None:
        return "this looks like a textual inversion embedding; it belongs into the embedding folder."
    return None


def _vectors_key(header: Header) -> str | None:
    named = next((name for name in ("emb_params", "clip_l") if name in header), None)
    return named or (next(iter(header)) if len(header) == 1 else None)


def _vectors(header: Header) -> int:
    key = _vectors_key(header)
    shape = header[key].shape if key else ()
    return 1 if len(shape) == 1 else shape[0]


_COMPLAINTS: Mapping[Kind, Callable[[Header, int], str | None]] = {
    Kind.LORA: _lora_complaint,
    Kind.EMBEDDING: _embedding_complaint,
    Kind.VAE: _vae_complaint,
}
