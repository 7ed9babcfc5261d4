"""Large answers: pictures, sheets and zips, made while they are sent, in memory that all of them share."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import TypeAlias

import structlog
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from api import callers, problems
from api.callers import Caller
from api.desk import Desk
from api.limits.owners import NOBODY
from api.limits.workrooms import Workroom
from shared.errors import FarmError, TooBusy

# How long an answer waits for memory.
PATIENCE_S = 5.0
# How long a client may take for a piece. One that reads more slowly would keep memory from all others.
PIECE_S = 30.0
PIECE_BYTES = 256 * 1024

Make: TypeAlias = Callable[[], Awaitable[bytes | None]]

log = structlog.get_logger(__name__)


class LargeAnswer(StreamingResponse):
    """An answer of pieces that are made one by one, for which `needs_bytes` of memory are taken as long as it is sent.

    What goes wrong with the first piece is answered as any error; later the answer breaks off, so that every client notices.
    A `single` piece is sent with its length. Headers that are `naming` what was asked for stand in a refusal, too.
    Each piece is made on a thread of the room, and waits for its turn there; between two pieces the answer holds none. Of the
    request's body `kept_bytes` are kept meanwhile.
    """

    def __init__(
        self,
        pieces: Iterator[bytes],
        *,
        needs_bytes: int,
        media_type: str,
        headers: Mapping[str, str] | None = None,
        naming: Mapping[str, str] | None = None,
        single: bool = False,
        room: str = "storage",
        kept_bytes: int = 0,
    ) -> None:
        super().__init__((), headers={**(headers or {}), **(naming or {})}, media_type=media_type)
        self._naming = naming
        self._has_begun = False
        self._pieces = pieces
        self._needs_bytes = needs_bytes
        self._single = single
        self._room = room
        self.kept_bytes = kept_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait for memory, then make and send the answer. Raises `TooBusy`, and what making the pieces raises."""
        try:
            await self._made(scope, receive, send)
        except FarmError as error:
            if self._has_begun or not self._naming:
                raise
            refusal = problems.of(Request(scope), error)
            refusal.headers.update(self._naming)
            await refusal(scope, receive, send)

    async def _made(self, scope: Scope, receive: Receive, send: Send) -> None:
        desk: Desk = scope["app"].state.desk
        caller: Caller | None = scope.get("state", {}).get("caller")
        room: Workroom = getattr(desk.rooms, self._room)
        make = partial(room.run, caller.owner if caller else NOBODY, next, self._pieces, None)
        async with desk.answers.holding(callers.sharer(scope), self._needs_bytes, patience_s=PATIENCE_S):
            first = await make() or b""
            if self._single:
                self.headers["Content-Length"] = str(len(first))
            self.body_iterator = _sliced(first, make, partial(desk.turns.turn_of, callers.sharer(scope)))
            self._has_begun = True
            await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        """Send the pieces while the client reads them."""

        async def paced(message: Message) -> None:
            try:
                async with asyncio.timeout(PIECE_S):
                    await send(message)
            except TimeoutError as error:
                raise _Unread from error

        try:
            await super().stream_response(paced)
        except _Unread:
            # An answer that does not end is broken off by the server.
            log.info("answer.unread", within_s=PIECE_S)


class _Unread(Exception):
    """The client does not read."""


async def _sliced(first: bytes, make: Make, turn: Callable[[], Awaitable[None]]) -> AsyncIterator[memoryview]:
    piece: bytes | None = first
    while piece is not None:
        for part in _slices(piece):
            await turn()
            yield part
        piece = await _next(make)


async def _next(make: Make) -> bytes | None:
    while True:
        with suppress(TooBusy):  # it has begun, and waits for its turn however long that takes
            return await make()


def _slices(piece: bytes) -> Iterator[memoryview]:
    whole = memoryview(piece)
    return (whole[at : at + PIECE_BYTES] for at in range(0, len(piece), PIECE_BYTES))
