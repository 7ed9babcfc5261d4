"""Bounds on request bodies, enforced while they arrive, so that no client can make the api hold more, or hold it up.

One body may be so large, all bodies together so large, and each must come at a pace. Compressed ones are refused: what they
would unpack to is anyone's guess.
"""

import asyncio
import time

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import problem

# How many of the largest bodies may be in memory at once.
BODIES_AT_ONCE = 8
# A body may take so long, and longer the more of it has come.
BODY_S = 20.0
MIN_BYTES_PER_S = 16 * 1024


class BodyLimit:
    """ASGI middleware that refuses bodies that are too large, too slow, compressed, or too many at once."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._room = max_bytes * BODIES_AT_ONCE

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif int(_header(scope, b"content-length", b"0") or 0) > self._max_bytes:
            await problem(413, "body_too_large", self._detail)(scope, receive, send)
        elif _header(scope, b"content-encoding", b"identity") != b"identity":
            refusal = problem(415, "unsupported_encoding", "Send the body as it is, without Content-Encoding.")
            await refusal(scope, receive, send)
        else:
            body = _Body(self, receive)
            try:
                await self._app(scope, body.receive, send)
            finally:
                self._room += body.seen

    def hold(self, count: int, seen: int) -> None:
        """Take `count` more bytes of a body of which `seen` have come, or refuse."""
        if seen > self._max_bytes:
            raise HTTPException(413, self._detail)
        if count > self._room:
            raise HTTPException(503, "The api holds as many bodies as it can; try again soon.", {"Retry-After": "5"})
        self._room -= count

    @property
    def _detail(self) -> str:
        return f"The body is larger than {self._max_bytes} bytes."


class _Body:
    """The body of one request as it arrives; `seen` bytes of it are in memory."""

    def __init__(self, limit: BodyLimit, receive: Receive) -> None:
        self._limit = limit
        self._receive = receive
        self._began = time.monotonic()
        self._is_whole = False
        self.seen = 0

    async def receive(self) -> Message:
        if self._is_whole:
            # What comes now is the client's leaving, for which a handler may wait as long as it likes.
            return await self._receive()
        patience_s = self._began + BODY_S + self.seen / MIN_BYTES_PER_S - time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), patience_s)
        except TimeoutError:
            raise HTTPException(408, "The body comes too slowly.") from None
        count = len(message.get("body", b""))
        self._limit.hold(count, self.seen + count)
        self.seen += count
        self._is_whole = not message.get("more_body", False)
        return message


def _header(scope: Scope, wanted: bytes, default: bytes) -> bytes:
    for name, value in scope["headers"]:
        if name == wanted:
            found: bytes = value.strip().lower()
            return found if wanted != b"content-length" or found.isdigit() else default
    return default
