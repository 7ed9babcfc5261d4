"""Frames: what the api and its annex say to each other over a socket, each a number, JSON and bytes. Nothing is unpickled."""

import json
import socket
import struct
from typing import Any, NamedTuple

_HEAD = struct.Struct("!QIQ")  # the number, and the lengths of the JSON and of the bytes
BUFFER_BYTES = 2**20  # of the socket, so that a large frame takes few turns


class AnnexFrame(NamedTuple):
    """A question, or the answer with the same number."""

    number: int
    about: dict[str, Any]
    data: bytes | bytearray


def ends(*, patience_s: float) -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a new connection; sending fails once the other end has read nothing for so long."""
    both = socket.socketpair()
    for end in both:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(patience_s), 0))
        for way in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, way, BUFFER_BYTES)
    return both


def send(to: socket.socket, frame: AnnexFrame) -> None:
    """Send a frame. Of several threads one at a time may. Raises `OSError`."""
    text = json.dumps(frame.about).encode()
    to.sendall(_HEAD.pack(frame.number, len(text), len(frame.data)) + text)
    if frame.data:
        to.sendall(frame.data)


def receive(source: socket.socket) -> AnnexFrame | None:
    """Return the next frame; None if the other side is gone."""
    try:
        number, text_bytes, data_bytes = _HEAD.unpack(_exactly(source, _HEAD.size))
        return AnnexFrame(number, json.loads(_exactly(source, text_bytes)), _exactly(source, data_bytes))
    except (EOFError, OSError):
        return None


def _exactly(source: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    rest = memoryview(data)
    while rest:
        # All at once, where the system can: each piece would have to win the interpreter back.
        got = source.recv_into(rest, 0, socket.MSG_WAITALL)
        if not got:
            raise EOFError
        rest = rest[got:]
    return data
