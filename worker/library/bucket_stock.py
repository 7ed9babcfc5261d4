"""Weights in the bucket as a worker knows them: listed now and then, known by their headers, fetched when they are needed."""

import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import structlog

from shared.errors import BadWeights, FarmError, ObjectMissing, StorageUnavailable, WeightsMissing
from shared.files.weights import HeldFile, Kind
from shared.fleet import weights_bucket
from shared.fleet.weights_bucket import BucketFile
from shared.infra.storage import Storage
from worker.library.weights_cache import WeightsCache

LOOK_EVERY_S = 30.0
PIECE = 64  # headers that are read between two lists
READERS = 8

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Stocked:
    """A file of the bucket with what its header says, or with what is wrong with it; `config` is its config's files by path."""

    file: BucketFile
    held: HeldFile | None
    complaint: str | None = None
    config: Mapping[str, str] | None = None


class BucketStock:
    """What is in the bucket, as `rescan` has seen it last. A bucket that is away lets nothing go. Thread-safe."""

    def __init__(self, storage: Storage, cache: WeightsCache, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.cache = cache
        self._storage = storage
        self._clock = clock
        self._looked_at = float("-inf")
        self._lock = Lock()
        self._known: dict[str, Stocked] = {}  # by key
        self._shown: Mapping[str, Mapping[str, Stocked]] = {}
        self._trouble = ""

    def rescan(self) -> bool:
        """List the bucket, at most every `LOOK_EVERY_S`; whether anything has changed. New files show up by and by."""
        with self._lock:
            if self._clock() - self._looked_at < LOOK_EVERY_S:
                return False
            before = self._shown
            try:
                files = list(weights_bucket.newest(weights_bucket.look(self._storage)).values())
                self._learn([file for file in files if file.key not in self._known])
            except StorageUnavailable as error:
                self._complain(error)
            else:
                self._trouble = ""
                self._known = {file.key: self._known[file.key] for file in files if file.key in self._known}
                self._show()
            self._looked_at = self._clock()
            self._bring_embeddings()
            return self._shown != before

    def held(self, kind: str) -> Mapping[str, HeldFile]:
        """Return the files of a kind whose headers can be read, by name; it waits for nothing."""
        return {name: one.held for name, one in self.stocked(kind).items() if one.held is not None}

    def stocked(self, kind: str) -> Mapping[str, Stocked]:
        """Return all files of a kind by name."""
        return self._shown.get(kind, {})

    def fetch(self, path: Path) -> None:
        """See that a held file lies at its path. Raises `WeightsMissing` or `StorageUnavailable`."""
        for kind in weights_bucket.KINDS:
            for one in self.stocked(kind).values():
                if self.cache.path(one.file) == path:
                    self.cache.fetch(one.file)
                    return
        raise WeightsMissing(f"{path.parent.name}: the bucket does not have it any more, or another one.")

    def _learn(self, files: list[BucketFile]) -> None:
        """Read headers, some at a time. Raises `StorageUnavailable`."""
        with ThreadPoolExecutor(READERS, thread_name_prefix="headers") as readers:
            for start in range(0, len(files), PIECE):
                for one in readers.map(self._read, files[start : start + PIECE]):
                    if one is not None:
                        self._known[one.file.key] = one
                self._show()

    def _read(self, file: BucketFile) -> Stocked | None:
        """Read a file's header; None if it is gone meanwhile."""
        try:
            packed = zlib.compress(weights_bucket.read_header(self._storage, file))
            config = weights_bucket.read_config(self._storage, file) if file.config else None
        except ObjectMissing:
            return None
        except BadWeights as error:
            log.warning("weights.refused", kind=file.kind, reason=str(error))
            return Stocked(file, None, str(error))
        stamp = int(file.modified_at.timestamp() * 1e9), file.size_bytes
        return Stocked(file, HeldFile(file.name, self.cache.path(file), stamp, packed), config=config)

    def _show(self) -> None:
        newest = weights_bucket.newest(one.file for one in self._known.values())
        shown: dict[str, dict[str, Stocked]] = {kind: {} for kind in weights_bucket.KINDS}
        for (kind, name), file in sorted(newest.items()):
            shown[kind][name] = self._known[file.key]
        self._shown = shown

    def _bring_embeddings(self) -> None:
        """Fetch the embeddings, which are small: every prompt is searched for the words that they are."""
        for one in _missing(self.stocked(Kind.EMBEDDING).values(), self.cache):
            try:
                self.cache.fetch(one.file)
            except FarmError as error:
                self._complain(error)
                return

    def _complain(self, error: FarmError) -> None:
        if str(error) != self._trouble:  # once, not at every look
            log.warning("weights.bucket_unread", **error.log_fields)
        self._trouble = str(error)


def _missing(stocked: Iterable[Stocked], cache: WeightsCache) -> list[Stocked]:
    return [one for one in stocked if one.held is not None and not cache.has(one.file)]
