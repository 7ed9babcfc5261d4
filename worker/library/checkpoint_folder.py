"""A folder of checkpoints as a worker knows it: looked through again and again, in pieces. Thread-safe.

A look that fails, or finds the folder suddenly empty, makes nothing vanish: a network file system may be away for a moment.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import structlog

from shared.errors import BadCheckpoint
from shared.files import checkpoints
from shared.files.checkpoints import Candidates, CheckpointFile, Stamp

PIECE = 200  # files whose headers are read between two lists
# A folder that held files and holds none may be a mount point whose file system is away; it is believed after so long.
EMPTY_BELIEVED_S = 30.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Shown:
    """What a folder holds: loadable files by name, and why others are refused, by name or where that is taken by path."""

    files: Mapping[str, CheckpointFile]
    refused: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Look:
    """A candidate as it was when its headers were read."""

    stamp: Stamp
    found: CheckpointFile | BadCheckpoint


class CheckpointFolder:
    """A folder with its subfolders, and single files that lie anywhere. `wants` tells the names that matter."""

    def __init__(
        self,
        folder: Path | None,
        *,
        files: Sequence[Path] = (),
        wants: Callable[[str], bool] = lambda _name: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._files = files
        self._wants = wants
        self._clock = clock
        self._lock = Lock()
        self._looks: dict[Path, _Look] = {}
        self._missing: dict[Path, str] = {}
        self._unreadable: dict[Path, str] = {}
        self._full_at = float("-inf")
        self.shown = Shown({}, {})

    def rescan(self) -> bool:
        """Look through the folder; whether anything has changed. New files show up by and by, in pieces of `PIECE`."""
        with self._lock:
            before = self.shown
            walked = self._walked()
            changed = [path for path, stamp in walked.stamps.items() if self._is_new(path, stamp)]
            for start in range(0, len(changed), PIECE):
                piece = changed[start : start + PIECE]
                self._looks |= {path: _Look(walked.stamps[path], _inspected(path)) for path in piece}
                self._show()
            self._unreadable = walked.unreadable
            if not self._is_suddenly_empty(walked):
                self._let_go(walked)
            self._show()
            return self.shown != before

    def path(self, name: str) -> Path | None:
        """Return where a checkpoint lies, or lay when it was refused: it may have been mended since."""
        file = self.shown.files.get(name)
        refused = (path for path in list(self._looks) if checkpoints.name_of(path) == name)
        return file.path if file else next(refused, None)

    def miss(self, name: str) -> None:
        """Show a file no more that turned out to be gone, until a look finds it."""
        files = {one: file for one, file in self.shown.files.items() if one != name}
        self.shown = Shown(files, self.shown.refused)

    def refuse(self, name: str, reason: str) -> None:
        """Show a file as one that turned out to be bad, until a look finds it mended."""
        self.miss(name)
        self.shown = Shown(self.shown.files, {**self.shown.refused, name: reason})

    def _walked(self) -> Candidates:
        walked = checkpoints.walk(self._folder) if self._folder else Candidates({}, {})
        wanted = {path: stamp for path, stamp in walked.stamps.items() if self._wants(checkpoints.name_of(path))}
        self._missing = {}
        for path in self._files:
            try:
                wanted[path] = checkpoints.stamp(path)
            except FileNotFoundError:
                self._missing[path] = f"{path}: there is no such file or folder."
            except OSError as error:
                walked.unreadable[path] = f"{path}: cannot be read ({error.strerror})."
        return Candidates(wanted, walked.unreadable)

    def _is_new(self, path: Path, stamp: Stamp) -> bool:
        return path not in self._looks or self._looks[path].stamp != stamp

    def _is_suddenly_empty(self, walked: Candidates) -> bool:
        if walked.stamps or not self._looks or self._folder is None:
            self._full_at = self._clock()
            return False
        return self._clock() - self._full_at < EMPTY_BELIEVED_S

    def _let_go(self, walked: Candidates) -> None:
        """Forget what is gone, but nothing that lies where nobody could look."""
        hidden = tuple(walked.unreadable)
        self._looks = {
            path: look
            for path, look in self._looks.items()
            if path in walked.stamps or any(path.is_relative_to(one) for one in hidden)
        }

    def _show(self) -> None:
        shown = Shown(*_sorted_out(self._looks, self._unreadable | self._missing, self._folder))
        for name in shown.refused.keys() - self.shown.refused.keys():
            log.warning("checkpoint.refused", reason=shown.refused[name])
        for name in self.shown.files.keys() - shown.files.keys():
            log.info("checkpoint.gone", checkpoint=name)
        self.shown = shown


def _inspected(path: Path) -> CheckpointFile | BadCheckpoint:
    try:
        return checkpoints.inspect(path)
    except BadCheckpoint as error:
        return error


def _sorted_out(
    looks: Mapping[Path, _Look], unreadable: Mapping[Path, str], folder: Path | None
) -> tuple[dict[str, CheckpointFile], dict[str, str]]:
    """Return the files by name, of several of one name that nearest to the top; and why the others are refused."""
    files: dict[str, CheckpointFile] = {}
    reasons = list(unreadable.items())
    for path in sorted(looks, key=lambda path: (str(path).count("/"), str(path))):
        found = looks[path].found
        if isinstance(found, BadCheckpoint):
            reasons.append((path, str(found)))
        elif files.setdefault(found.name, found) is not found:
            reasons.append((path, checkpoints.taken(path, files[found.name])))
    return files, dict(_called(reasons, files, folder))


def _called(
    reasons: Sequence[tuple[Path, str]], files: Mapping[str, CheckpointFile], folder: Path | None
) -> Iterator[tuple[str, str]]:
    """Yield the reasons by the name that a job would use, or by path where that is another's."""
    called: set[str] = set(files)
    for path, reason in reasons:
        inside = path.relative_to(folder) if folder and path.is_relative_to(folder) and path != folder else path
        name = checkpoints.name_of(path) if checkpoints.name_of(path) not in called else str(inside)
        called.add(name)
        # A name on disk may be bytes that are no text, which nothing beyond this machine could store.
        yield name.encode(errors="replace").decode(), reason.encode(errors="replace").decode()
