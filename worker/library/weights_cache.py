"""A cache on disk of weights from the bucket, bounded, for all processes of a machine.

Bytes go to a `.part` file, which a later try goes on with; the real name appears only once the digest has been verified. A lock
file for each file keeps two processes from fetching it at once; its time is that of the last use, its content the size.
"""

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import local
from typing import BinaryIO

import structlog

from shared.errors import ObjectDamaged, ObjectMissing, StorageUnavailable, WeightsMissing
from shared.fleet import weights_bucket
from shared.fleet.weights_bucket import BucketFile
from shared.infra import large_objects
from shared.infra.large_objects import CHUNK_BYTES
from shared.infra.storage import Storage
from worker.library.file_lock import FileLock

DEFAULT_CACHE_DIR = Path(".farm/cache")
IDLE_TRIES = 2  # broken connections in a row that have brought nothing
TELL_S = 5.0
FULL = {errno.ENOSPC, errno.EDQUOT}

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Kept:
    """A file of the cache, or a part of one: bytes that it takes or will take, and when it was used last."""

    path: Path
    size_bytes: int
    used_ns: int


class WeightsCache:
    """The folder `weights` of a machine's cache, of at most `limit_bytes`; by default half of what is free. Thread-safe."""

    def __init__(self, folder: Path, storage: Storage, *, limit_bytes: int | None = None) -> None:
        self._folder = folder
        self._storage = storage
        self._limit_bytes = limit_bytes
        self._pins = local()

    def path(self, file: BucketFile) -> Path:
        """Return where a file lies once it is fetched."""
        return self._folder / file.key

    def has(self, file: BucketFile) -> bool:
        """Whether a file lies there now."""
        return _size(self.path(file)) == file.size_bytes

    def limit_bytes(self) -> int:
        """Return how many bytes it may take."""
        if self._limit_bytes is not None:
            return self._limit_bytes
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return 0
        return (shutil.disk_usage(self._folder).free + sum(one.size_bytes for one in self._kept())) // 2

    def fetch(self, file: BucketFile) -> Path:
        """Return a file's path, fetching it if need be. It stays until the same thread fetches the next.

        Raises `WeightsMissing` if it is not in the bucket any more or finds no room here, `StorageUnavailable` if the store is
        away, and `ObjectDamaged` if what comes has another digest, twice.
        """
        path = self.path(file)
        self._let_go()
        try:
            lock = _lock(path)
            while not self._pinned(file, path, lock):
                with lock.alone(partial(_size, path.with_suffix(".part"))):
                    self._fetch(file, path, lock)
        except OSError as error:
            if error.errno in FULL:
                path.with_suffix(".part").unlink(missing_ok=True)
            raise self._no_room(file, error) from error
        return path

    def _let_go(self) -> None:
        """Let go of what this thread has fetched before."""
        before: FileLock | None = getattr(self._pins, "lock", None)
        if before is not None:
            before.close()
        self._pins.lock = None

    def _pinned(self, file: BucketFile, path: Path, lock: FileLock) -> bool:
        """Hold on to a file that is there. Whether it is."""
        lock.share(partial(_size, path.with_suffix(".part")))
        if not self.has(file):
            lock.release()
            return False
        os.utime(lock.fd)
        self._pins.lock = lock
        return True

    def discard(self, file: BucketFile) -> None:
        """Delete a file that turned out to be damaged here."""
        self.path(file).unlink(missing_ok=True)

    def _fetch(self, file: BucketFile, path: Path, lock: FileLock) -> None:
        if self.has(file):  # another process has just fetched it
            return
        self._make_room(file, path, lock)
        part = path.with_suffix(".part")
        for _ in range(2):
            digest = self._download(file, part)
            if digest == file.sha256:
                self._add_config(file, path)
                part.replace(path)
                log.info("weights.fetched", kind=file.kind, name=file.name, bytes=file.size_bytes)
                return
            log.warning("weights.damaged", kind=file.kind, name=file.name, sha256=digest)
            part.unlink()
        raise ObjectDamaged(f"The storage gave back {file.key} damaged, twice.", fix="push the file again")

    def _download(self, file: BucketFile, part: Path) -> str:
        """Fetch what is missing of a file, over broken connections too; return the digest of the whole."""
        idle = 0
        with part.open("a+b") as target:
            digest, have = _digest_of(target)
            while have < file.size_bytes:
                why: StorageUnavailable | None = None
                before = have
                try:
                    self._receive(file, target, digest, have)
                except StorageUnavailable as error:
                    why = error
                have = target.seek(0, os.SEEK_END)
                idle = 0 if have > before else idle + 1
                if idle == IDLE_TRIES:
                    raise why or StorageUnavailable(f"The storage has no more than {have} bytes of {file.key}.")
            os.fsync(target.fileno())
        return digest.hexdigest()

    def _receive(self, file: BucketFile, target: BinaryIO, digest: "hashlib._Hash", begin: int) -> None:
        told_at, have = time.monotonic(), begin
        try:
            for chunk in large_objects.read_from(self._storage, file.key, begin):
                target.write(chunk)
                target.flush()
                digest.update(chunk)
                have += len(chunk)
                if time.monotonic() - told_at >= TELL_S:
                    told_at = time.monotonic()
                    done = f"{have / file.size_bytes:.0%}"
                    log.info("weights.fetching", kind=file.kind, name=file.name, done=done, bytes=file.size_bytes)
        except ObjectMissing as error:
            raise _gone(file) from error

    def _add_config(self, file: BucketFile, path: Path) -> None:
        if file.config is None:
            return
        try:
            config = weights_bucket.read_config(self._storage, file)
        except ObjectMissing as error:
            raise _gone(file) from error
        for name, text in config.items():
            one = path.with_suffix(".config") / name
            one.parent.mkdir(parents=True, exist_ok=True)
            one.write_text(text)

    def _make_room(self, file: BucketFile, path: Path, lock: FileLock) -> None:
        """Reserve a file's bytes; the least recently used go, but none that is in use."""
        limit = self.limit_bytes()
        if file.size_bytes > limit:
            raise WeightsMissing(
                f"This worker cannot keep {file.kind} {file.name}: its {file.size_bytes} bytes are more than the cache"
                f" {self._folder} may hold ({limit})."
            )
        with closing(FileLock(self._folder / "cache.lock")) as whole, whole.alone():
            others = [one for one in self._kept() if one.path != path]
            excess = sum(one.size_bytes for one in others) + file.size_bytes - limit
            for one in sorted(others, key=lambda one: one.used_ns):
                if excess > 0 and _dropped(one.path):
                    excess -= one.size_bytes
            if excess > 0:
                raise WeightsMissing(
                    f"This worker cannot keep {file.kind} {file.name}: all that is in the cache {self._folder} is in use."
                    " A larger FARM_WEIGHTS_CACHE_BYTES holds more."
                )
            os.pwrite(lock.fd, str(file.size_bytes).encode().ljust(20), 0)
            path.with_suffix(".part").touch()

    def _kept(self) -> Iterator[_Kept]:
        for lock in self._folder.glob(f"{weights_bucket.PREFIX}*/*/.*.lock"):
            path = lock.with_name(f"{lock.name[1:-5]}.safetensors")
            with suppress(OSError, ValueError):
                if path.exists():
                    yield _Kept(path, path.stat().st_size, lock.stat().st_mtime_ns)
                elif path.with_suffix(".part").exists():
                    yield _Kept(path, int(lock.read_text()), lock.stat().st_mtime_ns)

    def _no_room(self, file: BucketFile, error: OSError) -> WeightsMissing:
        cause = "its disk is full" if error.errno in FULL else error.strerror or str(error)
        fix = f"make room in {self._folder}, or set FARM_WEIGHTS_CACHE_BYTES or FARM_CACHE_DIR"
        return WeightsMissing(f"This worker cannot keep {file.kind} {file.name} in {self._folder}: {cause}.", fix=fix)


def _gone(file: BucketFile) -> WeightsMissing:
    return WeightsMissing(f"The bucket has no {file.kind} {file.name} any more, or another one.")


def _dropped(path: Path) -> bool:
    """Delete a file of the cache, unless someone uses it."""
    with closing(_lock(path)) as lock:
        if not lock.take():
            return False
        path.unlink(missing_ok=True)
        path.with_suffix(".part").unlink(missing_ok=True)
        shutil.rmtree(path.with_suffix(".config"), ignore_errors=True)
    log.info("weights.dropped", file=str(path))
    return True


def _lock(path: Path) -> FileLock:
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f".{path.stem}.lock"))


def _digest_of(file: BinaryIO) -> tuple["hashlib._Hash", int]:
    file.seek(0)
    digest, size = hashlib.sha256(), 0
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
    return digest, size


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
