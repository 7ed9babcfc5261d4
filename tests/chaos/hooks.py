"""Webhook receiver as clients run one: it verifies every signature and records every message.

It fails for some messages, at most once for each: it answers with an error, or accepts and hangs up without an answer.
"""

import hashlib
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from enum import Enum
from typing import Any
from uuid import UUID
from zlib import crc32

from standardwebhooks import Webhook, WebhookVerificationError

from tests.chaos.history import Heard
from tests.support.servers import Handler, Server

SECRET = "whsec_" + "Y2hhb3Mh" * 4
ONE_IN = 12  # messages that meet either bad moment


class Manner(Enum):
    """How a message is treated."""

    TAKE = "take"
    REFUSE = "refuse"
    HANG_UP = "hang up"


class Hook(Handler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        manner = self.server.hear({name.lower(): value for name, value in self.headers.items()}, body)
        if manner is Manner.HANG_UP:
            self.close_connection = True
        else:
            self.answer(500 if manner is Manner.REFUSE else 204)


class Receiver(Server):
    """`heard` is all that came, in order."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self._met: set[str] = set()
        self._lock = threading.Lock()
        super().__init__(Hook)

    @property
    def choice(self) -> dict[str, str]:
        """What a submission says to have its end told here."""
        return {"url": f"{self.url}/hook", "secret": SECRET}

    def hear(self, headers: Mapping[str, str], body: bytes) -> Manner:
        """Write a message down; returns how it is to be answered."""
        at, message = time.time(), headers.get("webhook-id", "")
        with self._lock:
            manner = Manner.TAKE if message in self._met else manner_of(message)
            self._met.add(message)
            self.heard.append(read(headers, body, at=at, accepted=manner is not Manner.REFUSE))
        return manner


def manner_of(message: str) -> Manner:
    """Draw how a message is treated when it comes first; the same for the same message."""
    return {0: Manner.REFUSE, 1: Manner.HANG_UP}.get(crc32(message.encode()) % ONE_IN, Manner.TAKE)


def read(headers: Mapping[str, str], body: bytes, *, at: float, accepted: bool) -> Heard:
    """Verify and understand a message, as the standard's own library does."""
    digest, message = hashlib.sha256(body).hexdigest(), headers.get("webhook-id", "")
    try:
        told: Any = Webhook(SECRET).verify(body, dict(headers))
        job = told["data"]
        return Heard(
            message,
            at,
            accepted,
            digest,
            UUID(job["id"]),
            told["type"],
            job["version"],
            job["state"],
            len(job["images"]),
        )
    except (WebhookVerificationError, ValueError, KeyError, TypeError):
        return Heard(message, at, accepted, digest, job=None, type="", version=0, state="", images=0)


@contextmanager
def silence(count: int) -> Iterator[list[str]]:
    """Listen at as many addresses of loopback, each an origin of its own, and never answer whoever connects."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server((f"127.0.9.{host + 1}", 0))) for host in range(count)]
        yield ["http://{}:{}/".format(*listener.getsockname()) for listener in listeners]


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Run a receiver on loopback while the block lasts."""
    receiver = Receiver()
    try:
        yield receiver
    finally:
        receiver.stop()
