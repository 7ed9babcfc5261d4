"""Limits on request bodies, enforced while they arrive: size of one, memory of all, pace.

Compressed bodies are refused, because their unpacked size is unknown.
"""

import asyncio
import time
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.limits.memory import Memory
from api.problems import problem
from shared.errors import TooBusy

# How many of the largest bodies may be in memory at once.
BODIES_AT_ONCE = 8
# Bodies up to this size have memory of their own, so that no large ones keep them out.
SMALL_BYTES = 64 * 1024
SMALL_BODIES_AT_ONCE = 1024
# How long a body waits for memory, unread.
PATIENCE_S = 5.0
# Each piece of a body must have come so long after the one before it, its last and smaller one too.
PIECE_S = 10.0
PIECE_BYTES = 160 * 1024


class BodyLimit:
    """ASGI middleware that refuses bodies that are too large, too slow, compressed, or too many at once.

    `sharer` tells whose share of the memory a request takes.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, sharer: Callable[[Scope], str]) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._sharer = sharer
        self._large = Memory(max_bytes * BODIES_AT_ONCE)
        self._small = Memory(SMALL_BYTES * SMALL_BODIES_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif (_announced(scope) or 0) > self._max_bytes:
            await problem(413, "body_too_large", too_large(self._max_bytes))(scope, receive, send)
        elif _header(scope, b"content-encoding", b"identity") != b"identity":
            refusal = problem(415, "unsupported_encoding", "Send the body uncompressed, without Content-Encoding.")
            await refusal(scope, receive, send)
        else:
            held = HeldBytes(self._sharer(scope), self._small, self._large, max_bytes=self._max_bytes)
            Request(scope).state.body = held
            try:
                await self._app(scope, ArrivingBody(receive, held, _announced(scope)).receive, send)
            finally:
                held.keep(0)


def too_large(max_bytes: int) -> str:
    """Say that a body is too large."""
    return f"The body is larger than the limit of {max_bytes} bytes."


class HeldBytes:
    """Memory that the body of one request has taken, from the memory for small or for large ones."""

    def __init__(self, owner: str, small: Memory, large: Memory, *, max_bytes: int) -> None:
        self._owner = owner
        self._small, self._large = small, large
        self._memory, self._count = small, 0
        self.max_bytes = max_bytes

    async def reserve(self, count: int) -> None:
        """Hold memory for a body of `count` bytes. Raises `HTTPException` 503 if none becomes free."""
        memory = self._small if count <= SMALL_BYTES else self._large
        try:
            await memory.take(self._owner, count, patience_s=PATIENCE_S)
        except TooBusy:
            # Of the kind that FastAPI lets out of a body that it reads.
            detail = "The api is receiving as many request bodies as it can; retry in a few seconds."
            raise HTTPException(503, detail, {"Retry-After": "5"}) from None
        self.keep(0)
        self._memory, self._count = memory, count

    def keep(self, count: int) -> None:
        """Give back all but `count` bytes."""
        if count < self._count:
            self._memory.give(self._owner, self._count - count)
            self._count = count


class ArrivingBody:
    """Body of one request while it arrives. Its memory is reserved before it is read, as announced; else as it grows."""

    def __init__(self, receive: Receive, held: HeldBytes, announced: int | None) -> None:
        self._receive = receive
        self._held = held
        self._announced = SMALL_BYTES if announced is None else announced
        self._reserved = 0
        self._seen = 0
        self._has_begun, self._is_whole = False, False
        self._piece_began, self._piece_bytes = 0.0, 0

    async def receive(self) -> Message:
        """Receive the next part. Raises `HTTPException` 408, 413 or 503."""
        if self._is_whole:
            # What comes now is the client's leaving, for which a handler may wait as long as it likes.
            return await self._receive()
        if not self._has_begun:
            await self._reserve(self._announced)
        message = await self._paced()
        self._seen += len(message.get("body", b""))
        if self._seen > self._held.max_bytes:
            raise HTTPException(413, too_large(self._held.max_bytes))
        if self._seen > self._reserved:
            # It may become the longest: two that have a part of what they need would wait for each other.
            await self._reserve(SMALL_BYTES if self._seen <= SMALL_BYTES else self._held.max_bytes)
        self._is_whole = not message.get("more_body", False)
        if self._reserved > SMALL_BYTES:
            await asyncio.sleep(0)  # each part is a step of its own, however many are there
        if self._is_whole:
            self._held.keep(self._seen)
        return message

    async def _reserve(self, count: int) -> None:
        await self._held.reserve(count)
        self._reserved = count
        self._has_begun = True
        self._piece_began = time.monotonic()  # the wait for memory was not the client's

    async def _paced(self) -> Message:
        """Receive the next part before the present piece is overdue."""
        try:
            async with asyncio.timeout(self._piece_began + PIECE_S - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            # Closed, for what the client may yet send would keep the connection.
            raise HTTPException(408, "The request body arrives too slowly.", {"Connection": "close"}) from None
        self._piece_bytes += len(message.get("body", b""))
        if self._piece_bytes >= PIECE_BYTES:
            self._piece_began, self._piece_bytes = time.monotonic(), 0
        return message


def _announced(scope: Scope) -> int | None:
    """Return the length of the body as its head has it; None for one that comes in chunks of any number."""
    length = _header(scope, b"content-length", b"")
    if length.isdigit():
        return int(length)
    return None if _header(scope, b"transfer-encoding", b"") else 0


def _header(scope: Scope, wanted: bytes, default: bytes) -> bytes:
    for name, value in scope["headers"]:
        if name == wanted:
            text: bytes = value.strip().lower()
            return text
    return default
