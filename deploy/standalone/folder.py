"""The farm's data folder: its lock, and the secrets and ports that must survive a restart.

Only the process that holds the lock writes below the folder, so one farm runs on it at a time.
"""

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.standalone import ports
from deploy.standalone.program import StartFailed


@dataclass(frozen=True, slots=True)
class DataFolder:
    """A data folder that this process has locked."""

    path: Path

    @property
    def logs(self) -> Path:
        """Folder of the programs' logs."""
        return self.path / "logs"

    @property
    def run_file(self) -> Path:
        """Run file: the processes of the present run."""
        return self.path / "run.json"

    def shortage(self, needed_bytes: float) -> str | None:
        """Return an error with its fix if the disk has less than `needed_bytes` left; else None."""
        free = shutil.disk_usage(self.path).free
        if free >= needed_bytes:
            return None
        return (
            f"The disk of {self.path} is full: {free / 1e6:.0f} MB are left and the farm needs {needed_bytes / 1e6:.0f} MB. "
            "Make room, or choose another folder with --data-dir."
        )

    def subfolder(self, name: str) -> Path:
        """Return a subfolder with mode 0700, created if need be."""
        folder = self.path / name
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def secret(self, name: str) -> str:
        """Return the named secret, generated at its first use. Letters and digits only: it goes into URLs and config files."""
        return str(self._remember("secrets.json", name, secrets.token_hex(20)))

    def port(self, name: str, host: str = "127.0.0.1") -> int:
        """Return a free port, the same as in earlier runs if possible, so that presigned URLs survive a restart."""
        stored = _read(self.path / "ports.json").get(name)
        port = ports.pick(host, stored if isinstance(stored, int) else None)
        if port != stored:
            _write(self.path / "ports.json", {**_read(self.path / "ports.json"), name: port})
        return port

    def _remember(self, file: str, name: str, fresh: str) -> object:
        entries = _read(self.path / file)
        if name not in entries:
            entries[name] = fresh
            _write(self.path / file, entries)
        return entries[name]


@contextmanager
def hold(path: Path) -> Iterator[DataFolder]:
    """Lock a data folder within the block, created if need be. Raises `StartFailed` if another farm has locked it."""
    path = path.expanduser().resolve()
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(path / "farm.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartFailed(
            f"The data folder {path} cannot be used: {error.strerror}. Choose another with --data-dir."
        ) from error
    try:
        _lock(lock, path)
        folder = DataFolder(path)
        folder.subfolder("logs")
        yield folder
    finally:
        os.close(lock)


def remembered(path: Path, file: str, name: str) -> object:
    """Return the stored entry of a name without locking the folder; None if there is none."""
    return _read(path.expanduser() / file).get(name)


def _lock(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(lock, 32, 0).decode().strip() or "unknown"
        raise StartFailed(
            f"Another farm (process {holder}) already runs on {path}; stop it, or choose another folder with --data-dir."
        ) from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)


def _read(file: Path) -> dict[str, object]:
    if not file.exists():
        return {}
    try:
        entries = json.loads(file.read_text())
    except ValueError as error:
        raise StartFailed(f"{file} is damaged ({error}); restore it, or start on a new --data-dir.") from error
    return dict(entries)


def _write(file: Path, content: dict[str, object]) -> None:
    """Replace a file atomically: a crash leaves the old one or the new one."""
    fresh = file.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        json.dump(content, out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    fresh.replace(file)
