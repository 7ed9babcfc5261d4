"""A real receiver of webhooks on loopback: keeps what it got, answers what a test tells it to, and can be made to wait."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from tests.support.servers import LOOPBACK, Handler, Server
from tests.support.waiting import LIMIT_S


@dataclass(frozen=True)
class Message:
    """A webhook as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


class Hook(Handler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.got.put(Message(self.path, headers, body))
        if self.path in self.server.slow:
            self.server.released.wait(LIMIT_S)
        status, more = self.server.answers.pop(0) if self.server.answers else (200, {})
        self.answer(status, **more)


class Receiver(Server):
    """`answers` are given in turn, then 200; paths in `slow` are answered only once `released`."""

    def __init__(self) -> None:
        self.got: SimpleQueue[Message] = SimpleQueue()
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.slow: set[str] = set()
        self.released = threading.Event()
        super().__init__(Hook)

    def next(self) -> Message:
        return self.got.get(timeout=LIMIT_S)


@contextmanager
def silence() -> Iterator[int]:
    """Listen on a port of loopback, and never answer whoever connects, while the block lasts."""
    with socket.create_server((LOOPBACK, 0), backlog=256) as listener:
        yield listener.getsockname()[1]


@contextmanager
def receiving() -> Iterator[Any]:
    receiver = Receiver()
    try:
        yield receiver
    finally:
        receiver.released.set()
        receiver.stop()
