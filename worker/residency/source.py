"""Where checkpoints come from: the library of a worker as residency sees it, and the least of libraries, files that are given."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shared.errors import WeightsMissing
from shared.files.checkpoints import CheckpointFile


class Listed(Protocol):
    """A checkpoint on a library's list. `path` is None where it lies in the bucket alone."""

    @property
    def size_bytes(self) -> int:
        """Bytes of its files."""

    @property
    def path(self) -> Path | None:
        """Where it lies on a local disk."""

    @property
    def sha256(self) -> str | None:
        """The digest that the file must have; None for one that is what it is."""


class CheckpointSource(Protocol):
    """The checkpoints that a worker can load. Thread-safe."""

    def files(self) -> Mapping[str, Listed]:
        """Return what can be loaded, by name."""

    def refused(self) -> Mapping[str, str]:
        """Return why others cannot be, by name."""

    def find(self, name: str) -> CheckpointFile:
        """Return a checkpoint's local file, fetched if need be. Raises a `FarmError` for one that is missing or bad."""

    def distrust(self, name: str) -> None:
        """Let go of a fetched copy whose bytes are not what its digest says."""


@dataclass(frozen=True, slots=True)
class GivenFile:
    """A file whose place is known."""

    size_bytes: int
    path: Path | None
    sha256: str | None = None


class GivenFiles:
    """A library of files that are given once and for all."""

    def __init__(self, *files: CheckpointFile) -> None:
        self._files = {file.name: file for file in files}

    def files(self) -> Mapping[str, Listed]:
        """Return them all."""
        return {name: GivenFile(file.size_bytes, file.path) for name, file in self._files.items()}

    def refused(self) -> Mapping[str, str]:
        """Return nothing: what cannot be loaded was not given."""
        return {}

    def distrust(self, name: str) -> None:
        """Do nothing: these files are nobody's copies."""

    def find(self, name: str) -> CheckpointFile:
        """Return a file by its name. Raises `WeightsMissing`: another worker may have it."""
        if name not in self._files:
            raise WeightsMissing(f"This worker has no checkpoint named {name!r}.")
        return self._files[name]
