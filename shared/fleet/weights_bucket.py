"""Weights in the farm's bucket: `weights/KIND/NAME/SHA256.safetensors`, so that a listing tells what there is.

Of several files of one name the newest counts. A checkpoint of other sizes has its `NAME.config/` beside it, as one JSON object;
the first characters of that object's digest are in both keys.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import structlog

from shared.errors import BadWeights
from shared.files import checkpoints, weights
from shared.files.headers import MAX_HEADER_BYTES
from shared.files.weights import Kind
from shared.infra import large_objects
from shared.infra.large_objects import Advance, StoredObject
from shared.infra.storage import Storage

PREFIX = "weights/"
CHECKPOINT = "checkpoint"
KINDS = (CHECKPOINT, *Kind)
MOST = 50_000  # objects that are listed
OPENING_BYTES = 256 * 1024  # holds the header of most files
NAME_BYTES = 200  # where objects are kept as files, 255 are allowed
CONFIG_BYTES = 1_000_000

_KEY = re.compile(rf"{PREFIX}([a-z]+)/([^/]+)/([0-9a-f]{{64}})(?:\.([0-9a-f]{{16}}))?\.safetensors")
_CONFIG_FILE = re.compile(r"(?:[a-z_]{1,40}/)?[a-z_]{1,40}\.json")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class BucketFile:
    """A weights file in the bucket. `kind` is one of `KINDS`; `config` names the config that belongs to it, if any."""

    kind: str
    name: str
    sha256: str
    size_bytes: int
    modified_at: datetime
    config: str | None = None

    @property
    def stem(self) -> str:
        """Return what tells its content from any other, and is fit for a file's name."""
        return f"{self.sha256}.{self.config}" if self.config else self.sha256

    @property
    def key(self) -> str:
        """Return the key of its object."""
        return f"{PREFIX}{self.kind}/{self.name}/{self.stem}.safetensors"

    @property
    def config_key(self) -> str:
        """Return the key of its config's object."""
        return f"{PREFIX}{self.kind}/{self.name}/{self.stem}.config.json"


def read_key(one: StoredObject) -> BucketFile | None:
    """Return what a key tells of its object; None for a key that the farm has not made."""
    found = _KEY.fullmatch(one.key)
    if found is None or found[1] not in KINDS or complaint(found[1], found[2]):
        return None
    return BucketFile(found[1], found[2], found[3], one.size_bytes, one.modified_at, found[4])


def complaint(kind: str, name: str) -> str | None:
    """Say what is wrong with a name; None if weights of the kind may be called so."""
    pattern = checkpoints.NAME if kind == CHECKPOINT else weights.NAME
    if pattern.fullmatch(name) and name.isprintable() and name[0] != "." and len(name.encode()) <= NAME_BYTES:
        return None
    allowed = "letters, digits, '.', '_' and '-'" if kind == CHECKPOINT else "printable characters but < > : / and \\"
    return f"{name!r} is no name for a {kind}: use {allowed}, no '.' at first, {NAME_BYTES} bytes at most."


def newest(files: Iterable[BucketFile]) -> Mapping[tuple[str, str], BucketFile]:
    """Return of each kind and name the file that was stored last."""
    return {(one.kind, one.name): one for one in sorted(files, key=lambda one: (one.modified_at, one.key))}


def look(storage: Storage, prefix: str = "") -> list[BucketFile]:
    """List the files under a prefix, all by default. Raises `StorageUnavailable`."""
    found = large_objects.listed(storage, PREFIX + prefix, at_most=MOST)
    return [file for file in map(read_key, found) if file is not None]


def read_header(storage: Storage, file: BucketFile) -> bytes:
    """Return the JSON of a file's safetensors header, without the rest.

    Raises `BadWeights`, `ObjectMissing` or `StorageUnavailable`.
    """
    opening = large_objects.read_range(storage, file.key, 0, OPENING_BYTES)
    length = int.from_bytes(opening[:8], "little")
    if len(opening) < 8 or not 2 <= length <= MAX_HEADER_BYTES:
        raise BadWeights(f"{file.key}: not a safetensors file (its header is unreadable).")
    rest = b""
    if 8 + length > len(opening):
        rest = large_objects.read_range(storage, file.key, len(opening), 8 + length)
    raw = (opening + rest)[8 : 8 + length]
    if len(raw) < length:
        raise BadWeights(f"{file.key}: truncated inside its header; push it again.")
    return raw


def read_config(storage: Storage, file: BucketFile) -> Mapping[str, str]:
    """Return the files of a checkpoint's config by path. Raises `BadWeights`, `ObjectMissing`, `StorageUnavailable`."""
    raw = large_objects.read_range(storage, file.config_key, 0, CONFIG_BYTES)
    try:
        config = json.loads(raw)
        is_ours = _config_digest(raw) == file.config and all(map(_CONFIG_FILE.fullmatch, config))
        if not is_ours or not all(isinstance(text, str) for text in config.values()):
            raise ValueError("it is another's")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BadWeights(f"{file.config_key}: cannot be read ({error}); push the checkpoint again.") from error
    return dict(config)


def push(storage: Storage, file: BucketFile, path: Path, config: bytes, advance: Advance) -> None:
    """Store a file whose digest is known, and let go of others of its name. Raises `BadWeights` if it has changed since.

    `config` is what `packed` made of its config, empty if it has none. Raises `StorageUnavailable`; a next push then goes on.
    """
    if file.config:
        storage.put(file.config_key, config, content_type="application/json")
    with path.open("rb") as source:
        if not large_objects.send(storage, file.key, source, sha256=file.sha256, advance=advance):
            raise BadWeights(f"{path}: has changed while it was sent.", fix="push it again when it is complete")
    remove(storage, file.kind, file.name, but=file.stem)


def packed(folder: Path | None) -> tuple[bytes, str | None]:
    """Return a config folder as one JSON object, and what names it in keys; nothing for None. Raises `BadWeights`."""
    if folder is None:
        return b"", None
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*.json"))}
    raw = json.dumps({name: path.read_text() for name, path in paths.items() if _CONFIG_FILE.fullmatch(name)}).encode()
    if len(raw) > CONFIG_BYTES:
        raise BadWeights(f"{folder}: holds more than {CONFIG_BYTES} bytes of JSON.", fix="keep the config files only")
    return raw, _config_digest(raw)


def remove(storage: Storage, kind: str, name: str, *, but: str | None = None) -> int:
    """Delete all files of a name `but` that of a stem, and what was left of broken uploads; return how many."""
    prefix = f"{PREFIX}{kind}/{name}/"
    keys = [one.key for one in large_objects.listed(storage, prefix, at_most=MOST)]
    gone = [key for key in keys if key not in {f"{prefix}{but}.safetensors", f"{prefix}{but}.config.json"}]
    storage.delete_all(gone)
    for key, upload in large_objects.unfinished(storage, prefix).items():
        large_objects.abandon(storage, key, upload)
    return sum(key.endswith(".safetensors") for key in gone)


def _config_digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:16]
