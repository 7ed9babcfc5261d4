"""Limits on request bodies, enforced while they arrive: size of one, size of all, minimum pace.

Compressed bodies are refused, because their unpacked size is unknown.
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
            refusal = problem(415, "unsupported_encoding", "Send the body uncompressed, without Content-Encoding.")
            await refusal(scope, receive, send)
        else:
            body = _Body(self, receive)
            try:
                await self._app(scope, body.receive, send)
            finally:
                self._room += body.seen

    def hold(self, count: int, seen: int) -> None:
        """Reserve memory for `count` more bytes of a body of which `seen` have arrived. Raises `HTTPException` 413 or 503."""
        if seen > self._max_bytes:
            raise HTTPException(413, self._detail)
        if count > self._room:
            raise HTTPException(
                503,
                "The api is receiving as many request bodies as it can; retry in a few seconds.",
                {"Retry-After": "5"},
            )
        self._room -= count

    @property
    def _detail(self) -> str:
        return f"The body is larger than the limit of {self._max_bytes} bytes."


class _Body:
    """Body of one request while it arrives; `seen` bytes of it are in memory."""

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
            raise HTTPException(408, "The request body arrives too slowly.") from None
        count = len(message.get("body", b""))
        self._limit.hold(count, self.seen + count)
        self.seen += count
        self._is_whole = not message.get("more_body", False)
        return message


def _header(scope: Scope, wanted: bytes, default: bytes) -> bytes:
    for name, value in scope["headers"]:
        if name == wanted:
            text: bytes = value.strip().lower()
            return text if wanted != b"content-length" or text.isdigit() else default
    return default
