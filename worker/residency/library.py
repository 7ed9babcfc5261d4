"""The library of a worker: the checkpoints that it can load. Thread-safe."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from threading import Lock

from shared.errors import BadCheckpoint, WeightsMissing
from shared.files import checkpoints
from shared.files.checkpoints import CheckpointFile
from worker.residency.checkpoint_folder import CheckpointFolder


@dataclass(frozen=True, slots=True)
class LibraryEntry:
    """A checkpoint of a library. `sha256` is None until someone has read the file and told it."""

    file: CheckpointFile
    sha256: str | None = None

    @property
    def size_bytes(self) -> int:
        """Return the size of its file or files."""
        return self.file.size_bytes

    @property
    def path(self) -> Path | None:
        """Return where it lies on this machine."""
        return self.file.path


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a worker is restricted to, in its order: names, and files that may lie anywhere. Nothing at all means everything."""

    items: tuple[str | Path, ...] = ()

    @classmethod
    def read(cls, text: str | None) -> "Wanted":
        """Read `FARM_CHECKPOINT`: a path, or a list of names and paths that is separated by commas."""
        if text is None:
            return cls()
        items = [text] if Path(text).exists() else [item.strip() for item in text.split(",") if item.strip()]
        return cls(tuple(Path(item).expanduser() if _is_path(item) else item for item in items))

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names."""
        return tuple(item for item in self.items if isinstance(item, str))

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the files and diffusers folders."""
        return tuple(item for item in self.items if isinstance(item, Path))

    @property
    def is_everything(self) -> bool:
        """Whether nothing is left out."""
        return not self.items

    def wants(self, name: str) -> bool:
        """Whether a checkpoint of a folder or of the bucket is wanted."""
        return self.is_everything or name in self.names

    def order(self, name: str) -> tuple[int, str]:
        """Return what sorts checkpoints: as they are listed, then by name."""
        listed = [item if isinstance(item, str) else checkpoints.name_of(item) for item in self.items]
        return listed.index(name) if name in listed else len(listed), name


class Library:
    """The checkpoints that a worker can load, from a folder. It knows what `rescan` has seen last, and nothing before that.

    `only` restricts it, as `FARM_CHECKPOINT` does.
    """

    def __init__(
        self, folder: Path | None = None, *, only: str | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._wanted = Wanted.read(only)
        self._folder = CheckpointFolder(
            folder.expanduser() if folder and (self._wanted.is_everything or self._wanted.names) else None,
            files=self._wanted.files,
            wants=self._wanted.wants,
            clock=clock,
        )
        self._lock = Lock()
        self._digests: dict[CheckpointFile, str] = {}

    def files(self) -> Mapping[str, LibraryEntry]:
        """Return what can be loaded by name: in the order of `only`, then of names."""
        files = self._folder.shown.files
        with self._lock:
            return {
                name: LibraryEntry(files[name], self._digests.get(files[name]))
                for name in sorted(files, key=self._wanted.order)
            }

    def refused(self) -> Mapping[str, str]:
        """Return why others cannot be loaded, by the name that a job would use, or by path where that is another's."""
        refused = dict(self._folder.shown.refused)
        known = self._folder.shown.files.keys() | refused.keys()
        missing = {name: f"{name}: no checkpoint has this name." for name in self._wanted.names if name not in known}
        return refused | missing

    def rescan(self) -> bool:
        """Look for what is new, changed or gone; whether anything is. In a large new folder it takes a while."""
        changed = self._folder.rescan()
        with self._lock:
            present = set(self._folder.shown.files.values())
            self._digests = {file: sha256 for file, sha256 in self._digests.items() if file in present}
        return changed

    def find(self, name: str) -> CheckpointFile:
        """Find a checkpoint's file, as it is now.

        Raises `WeightsMissing` for one that is not there, and `BadCheckpoint` for one that cannot be loaded.
        """
        file = self._folder.shown.files.get(name)
        if file is None:
            raise self._unknown(name)
        if not file.path.exists():
            raise WeightsMissing(f"{file.path}: the file is gone.")
        return checkpoints.inspect(file.path)

    def tell(self, file: CheckpointFile, sha256: str) -> None:
        """Take note of the digest of a file that someone has read."""
        with self._lock:
            self._digests[file] = sha256

    def _unknown(self, name: str) -> Exception:
        refused = self.refused()
        if name in refused:
            return BadCheckpoint(refused[name])
        close = ", ".join(get_close_matches(name, self._folder.shown.files, n=3)) or "none"
        return WeightsMissing(f"This worker has no checkpoint named {name!r}. Close: {close}.")


def _is_path(item: str) -> bool:
    return "/" in item or item.endswith(".safetensors") or Path(item).exists()
