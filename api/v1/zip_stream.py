"""A zip that is written while it is sent: one file in memory at a time, none on disk."""

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from typing import TypeAlias
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from shared.errors import Gone

ZIP = "application/zip"

# A name inside the zip, and how to get its bytes.
File: TypeAlias = tuple[str, Callable[[], bytes]]


class _Pipe(io.RawIOBase):
    """Keeps what was written until it is taken. It cannot be sought in, so the zip describes each file behind its bytes."""

    def __init__(self) -> None:
        self._written: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._written.append(bytes(data))
        return len(data)

    def taken(self) -> bytes:
        """Return what was written since it was last asked."""
        data = b"".join(self._written)
        self._written.clear()
        return data


def zipped(files: Iterable[File], *, at: datetime) -> Iterator[bytes]:
    """Yield the zip file by file. Pictures are stored as they are, for PNG is compressed already.

    A file that is gone by its turn is left out. Any other error of a file's source breaks the zip off before its directory, so
    that every reader notices.
    """
    pipe = _Pipe()
    with ZipFile(pipe, "w", ZIP_STORED) as archive:
        for name, read in files:
            with suppress(Gone):
                archive.writestr(ZipInfo(name, date_time=at.timetuple()[:6]), read())
            yield pipe.taken()
    yield pipe.taken()
