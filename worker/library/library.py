"""The library of a worker: the checkpoints that it can load. Thread-safe."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import structlog

from shared.errors import BadCheckpoint, BadWeights, WeightsMissing
from shared.files import checkpoints, headers
from shared.files.checkpoints import SD15_CONTEXT_WIDTH, CheckpointFile
from shared.files.wanted import Wanted, expanded
from shared.fleet.weights_bucket import CHECKPOINT, BucketFile
from shared.infra.storage import Storage
from shared.settings import Settings
from worker.library.bucket_stock import BucketStock, Stocked
from worker.library.checkpoint_folder import CheckpointFolder
from worker.library.weights_cache import DEFAULT_CACHE_DIR, WeightsCache

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LibraryEntry:
    """A checkpoint of a library. `sha256` is what a copy of the bucket's must have; a file of a folder is what it is.

    `is_here` is false for one that has to be fetched from the bucket first; `file.path` is where it will lie.
    """

    file: CheckpointFile
    sha256: str | None = None
    is_here: bool = True
    in_bucket: bool = False

    @property
    def size_bytes(self) -> int:
        """Return the size of its file or files."""
        return self.file.size_bytes

    @property
    def path(self) -> Path | None:
        """Return where it lies on this machine, if it does."""
        return self.file.path if self.is_here else None


class Library:
    """The checkpoints that a worker can load: in a folder, and in the farm's bucket. The folder's is taken where both have one.

    It knows what `rescan` has seen last, and nothing before that. `only` restricts it, as `FARM_CHECKPOINT` does.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        only: str | None = None,
        stock: BucketStock | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stock = stock
        self._wanted = Wanted.read(only)
        by_name = self._wanted.is_everything or self._wanted.names
        self._folder = CheckpointFolder(
            expanded(folder) if folder and by_name else None,
            files=self._wanted.files,
            wants=self._wanted.wants,
            clock=clock,
        )
        self._bucket: Mapping[str, _Held] = {}

    def files(self) -> Mapping[str, LibraryEntry]:
        """Return what can be loaded by name: in the order of `only`, then of names."""
        local, bucket = self._folder.shown.files, self._bucket
        here = {name: LibraryEntry(file, in_bucket=name in bucket) for name, file in local.items()}
        for name, one in bucket.items():
            if name not in here and (entry := self._entry(one)):
                here[name] = entry
        return {name: here[name] for name in sorted(here, key=self._wanted.order)}

    def refused(self) -> Mapping[str, str]:
        """Return why others cannot be loaded, by the name that a job would use, or by path where that is another's."""
        files = self.files()
        refused = {name: str(one.found) for name, one in self._bucket.items() if isinstance(one.found, BadWeights)}
        for name, reason in self._folder.shown.refused.items():
            refused[f"{name}.safetensors" if name in files else name] = reason
        known = files.keys() | refused.keys()
        refused = {name: reason for name, reason in refused.items() if name not in files}
        missing = {name: f"{name}: no checkpoint has this name." for name in self._wanted.names if name not in known}
        return refused | missing

    def rescan(self, *, bucket: bool = True) -> bool:
        """Look for what is new, changed or gone; whether anything is. In a large new folder it takes a while.

        The bucket may be away, which takes longer still; it can be left out.
        """
        changed = self._folder.rescan()
        if self.stock is not None and bucket:
            self.stock.rescan()
            before, stocked = self._bucket, self.stock.stocked(CHECKPOINT)
            limit = self.stock.cache.limit_bytes() if stocked else 0
            self._bucket = {
                name: self._recognised(one, self.stock.cache, limit)
                for name, one in stocked.items()
                if self._wanted.wants(name)
            }
            changed |= self._bucket != before
        return changed

    def find(self, name: str) -> CheckpointFile:
        """Find a checkpoint's file, as it is now, and fetch it from the bucket if need be.

        A fetched file stays in the cache until the same thread finds the next. Raises `WeightsMissing` for one that is not there
        or finds no room here, `BadCheckpoint` for one that cannot be loaded, `StorageUnavailable`.
        """
        path = self._folder.path(name)
        if path is not None:
            try:
                return checkpoints.inspect(path)
            except BadCheckpoint as error:
                if path.exists():
                    self._folder.refuse(name, str(error))
                    raise
            self._folder.miss(name)
        held = self._bucket.get(name)
        if held is not None and self.stock is not None and isinstance(held.found, CheckpointFile):
            return replace(checkpoints.inspect(self.stock.cache.fetch(held.file)), name=name)
        if path is not None:
            raise WeightsMissing(f"{path}: the file is gone.")
        raise self._unknown(name)

    def distrust(self, name: str) -> None:
        """Delete the cached copy of a checkpoint whose bytes are not what its digest says: it will be fetched again."""
        held = self._bucket.get(name)
        if held is not None and self.stock is not None and name not in self._folder.shown.files:
            self.stock.cache.discard(held.file)

    def _entry(self, held: "_Held") -> LibraryEntry | None:
        if self.stock is None or isinstance(held.found, BadWeights):
            return None
        return LibraryEntry(held.found, held.file.sha256, self.stock.cache.has(held.file), in_bucket=True)

    def _recognised(self, one: Stocked, cache: WeightsCache, limit_bytes: int) -> "_Held":
        before = self._bucket.get(one.file.name)
        if before is not None and before.file == one.file and isinstance(before.found, CheckpointFile):
            return before
        try:
            return _Held(one.file, _recognised(one, cache, limit_bytes))
        except BadWeights as error:
            if before is None:
                log.warning("checkpoint.refused", reason=str(error))
            return _Held(one.file, BadCheckpoint(str(error)))

    def _unknown(self, name: str) -> Exception:
        refused = self.refused()
        if name in refused:
            return BadCheckpoint(refused[name])
        close = ", ".join(get_close_matches(name, self.files(), n=3)) or "none"
        return WeightsMissing(f"This worker has no checkpoint named {name!r}. Close: {close}.")


@dataclass(frozen=True, slots=True)
class _Held:
    """A checkpoint in the bucket, and what its header says."""

    file: BucketFile
    found: CheckpointFile | BadWeights


def _recognised(one: Stocked, cache: WeightsCache, limit_bytes: int) -> CheckpointFile:
    """Return what is known of a checkpoint in the bucket. Raises `BadWeights`."""
    file, path = one.file, cache.path(one.file)
    if one.held is None:
        raise BadWeights(one.complaint or "")
    if file.size_bytes > limit_bytes:
        raise BadWeights(
            f"{file.key}: its {file.size_bytes} bytes do not fit into the cache, which may hold {limit_bytes};"
            " make room on the disk, or raise FARM_WEIGHTS_CACHE_BYTES."
        )
    width = SD15_CONTEXT_WIDTH
    if one.config is not None:
        width = checkpoints.context_width_of(_unet(one.config), file.config_key)
    header = headers.parsed(Path(file.key), one.held.raw, file.size_bytes)
    found = checkpoints.recognised(Path(file.key), header, file.size_bytes, context_width=width)
    config_dir = path.with_suffix(".config") if file.config else None
    stamp = ((path.name, 0, *one.held.stamp),)
    return replace(found, name=file.name, path=path, config_dir=config_dir, stamp=stamp)


def _unet(config: Mapping[str, str]) -> Mapping[str, Any]:
    try:
        unet = json.loads(config.get("unet/config.json", "{}"))
    except (ValueError, RecursionError):
        return {}
    return unet if isinstance(unet, dict) else {}


def open_library(settings: Settings) -> Library:
    """Open what a worker of these settings can load, with what the bucket has. Nothing has been looked at yet."""
    # Of its own, and less patient than for pictures: a worker with a folder need not wait for a bucket that is away.
    storage = Storage(settings, tries=2)
    cache = WeightsCache(settings.cache_dir or DEFAULT_CACHE_DIR, storage, limit_bytes=settings.weights_cache_bytes)
    return Library(settings.checkpoint_dir, only=settings.checkpoint, stock=BucketStock(storage, cache))
