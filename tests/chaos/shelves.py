"""Shelves: each worker's folder of marked checkpoints, how their files are spoiled, and the record of what lay there when."""

import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import inf
from pathlib import Path
from threading import Lock

from tests.chaos import marked
from tests.chaos.history import Laid, Spoiled

Spoil = Callable[[Path, random.Random], None]


class Shelves:
    """The folders of some workers, at first with equal files.

    `laid` are the good files that lay there, `spoiled` is when one was missing or bad.
    """

    def __init__(self, folder: Path, workers: Sequence[str], seed: int) -> None:
        self._folder = folder
        self._random = random.Random(f"{seed}/shelves")
        self._lock = Lock()
        self._there: dict[Path, int] = {}
        self.laid: list[Laid] = []
        self.spoiled: list[Spoiled] = []
        self.workers = tuple(workers)
        for name in marked.NAMES:
            self._lay_all(name, self.workers, marked.made(self._random))

    def folder(self, worker: str) -> Path:
        """Where a worker finds its checkpoints."""
        return self._folder / worker

    def replace(self, name: str, workers: Sequence[str]) -> None:
        """Put other weights under a name, one worker after the other."""
        self._lay_all(name, workers, marked.made(self._random))

    @contextmanager
    def spoiling(self, how: str, name: str, workers: Sequence[str]) -> Iterator[None]:
        """Remove or damage files while the block lasts, then put them back."""
        began = time.time()
        paths = [self._path(worker, name) for worker in workers]
        whole = [path.read_bytes() for path in paths]
        for path in paths:
            SPOILS[how](path, self._random)
            self._note(path)
        try:
            yield
        finally:
            for path, data in zip(paths, whole, strict=True):
                self._lay(path, data)
            self.spoiled.append(Spoiled(name, began, time.time()))

    def _path(self, worker: str, name: str) -> Path:
        return self.folder(worker) / f"{name}.safetensors"

    def _lay_all(self, name: str, workers: Sequence[str], data: bytes) -> None:
        for worker in workers:
            self.folder(worker).mkdir(parents=True, exist_ok=True)
            self._lay(self._path(worker, name), data)

    def _lay(self, path: Path, data: bytes) -> None:
        aside = path.with_suffix(".new")
        aside.write_bytes(data)
        began = time.time()
        aside.replace(path)
        self._note(path, began)

    def _note(self, path: Path, began: float | None = None) -> None:
        """Write down what lies at a path now, if it is whole."""
        began = began or time.time()
        try:
            data = path.read_bytes()
            mark = marked.mark(data)
        except Exception:  # noqa: BLE001 - missing, cut or unreadable
            mark = ""
        with self._lock:
            if path in self._there:
                before = self._there.pop(path)
                self.laid[before] = replace(self.laid[before], ended=time.time())
            if mark:
                self._there[path] = len(self.laid)
                self.laid.append(Laid(path.stem, hashlib.sha256(data).hexdigest(), mark, began, inf))


def _remove(path: Path, _random: random.Random) -> None:
    path.unlink()


def _cut(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def _garble(path: Path, rng: random.Random) -> None:
    """Overwrite the begin of a file's header."""
    with path.open("r+b") as file:
        file.write(rng.randbytes(16))


def _flip(path: Path, rng: random.Random) -> None:
    """Flip a bit of a weight: to the farm it is another checkpoint."""
    at, byte = marked.flipped(path.read_bytes(), rng)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(byte)


SPOILS: Mapping[str, Spoil] = {"remove": _remove, "cut": _cut, "garble": _garble, "flip": _flip}
