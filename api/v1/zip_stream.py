"""Streaming zip: holds one file in memory at a time, none on disk."""

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from typing import TypeAlias
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from shared.errors import Gone, ImageLost, ObjectDamaged

ZIP = "application/zip"
# Of a file, in memory while the next one is read: the file, the piece of the zip, and the piece before it.
COPIES = 3

# A name inside the zip, and how to get its bytes.
File: TypeAlias = tuple[str, Callable[[], bytes]]


class _Pipe(io.RawIOBase):
    """Buffer between the zip writer and the response. Not seekable, so the zip describes each file after its bytes."""

    def __init__(self) -> None:
        self._written: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._written.append(bytes(data))
        return len(data)

    def drain(self) -> bytes:
        """Return the bytes written since the last call."""
        data = b"".join(self._written)
        self._written.clear()
        return data


def zipped(files: Iterable[File], *, at: datetime) -> Iterator[bytes]:
    """Yield the zip file by file. Files are stored uncompressed, because PNG is compressed already.

    A file whose source raises `Gone` is left out. One that is lost or damaged becomes a text of that name, which says so. Any
    other error ends the zip before its directory, so that every reader notices.
    """
    pipe = _Pipe()
    with ZipFile(pipe, "w", ZIP_STORED) as archive:
        for name, read in files:
            with suppress(Gone):
                entry, data = _entry(name, read)
                archive.writestr(ZipInfo(entry, date_time=at.timetuple()[:6]), data)
            yield pipe.drain()
    yield pipe.drain()


def _entry(name: str, read: Callable[[], bytes]) -> tuple[str, bytes]:
    try:
        return name, read()
    except ObjectDamaged as error:
        return f"{name}.damaged.txt", str(error).encode()
    except ImageLost as error:
        return f"{name}.lost.txt", str(error).encode()
