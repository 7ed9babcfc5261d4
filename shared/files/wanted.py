"""Checkpoints that workers are restricted to, as `FARM_CHECKPOINT` lists them: names, and files that may lie anywhere."""

from dataclasses import dataclass
from pathlib import Path

from shared.files import checkpoints


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a worker is restricted to, in its order: names, and files that may lie anywhere. Nothing at all means everything."""

    items: tuple[str | Path, ...] = ()

    @classmethod
    def read(cls, text: str | None) -> "Wanted":
        """Read `FARM_CHECKPOINT`: a path, or a list of names and paths that is separated by commas."""
        if not text:
            return cls()
        items = [text] if Path(text).exists() else [item.strip() for item in text.split(",") if item.strip()]
        return cls(tuple(expanded(Path(item)) if is_path(item) else item for item in items))

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


def is_path(item: str) -> bool:
    """Whether an item of the list means a file or folder, and not a name."""
    return "/" in item or item.endswith(".safetensors") or Path(item).exists()


def expanded(path: Path) -> Path:
    """Return a path with its home folder resolved; as it is for a user that does not exist, and so has no file."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path
