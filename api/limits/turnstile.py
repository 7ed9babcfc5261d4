"""A turnstile between keys and work: a crowd of requests of one owner lets those of others pass between.

Each turn of the event loop lets in a few requests of each owner, so that ten thousand that come at once take their first steps
one after another, and the next owner's takes its own at once. Of the requests under way an owner holds no more than are then left
free for others, however long they wait for a job.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api import problems
from shared.errors import TooBusy

# Requests of one owner that begin in one turn of the event loop, while it is alone and beside others.
PER_TURN, BESIDE_OTHERS = 4, 1


class Turnstile:
    """ASGI middleware inside of the keys, for one event loop. `places` bounds the requests under way of all owners.

    `sharer` tells whose place a request takes.
    """

    def __init__(self, app: ASGIApp, *, places: int, sharer: Callable[[Scope], str]) -> None:
        self._app = app
        self._sharer = sharer
        self._free = places
        self._held: Counter[str] = Counter()
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}
        self._entered: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if "caller" not in scope.get("state", {}):
            await self._app(scope, receive, send)
            return
        owner = self._sharer(scope)
        if self._held[owner] >= self._free:
            refusal = TooBusy(
                "You have as many requests under way as the api can hold for you; retry in a few seconds."
            )
            await problems.of(Request(scope), refusal)(scope, receive, send)
            return
        self._hold(owner, 1)
        try:
            await self._turn_of(owner)
            await self._app(scope, receive, send)
        finally:
            self._hold(owner, -1)

    def _hold(self, owner: str, count: int) -> None:
        self._free -= count
        self._held[owner] += count
        if not self._held[owner]:
            del self._held[owner]

    async def _turn_of(self, owner: str) -> None:
        """Wait until the owner's turn comes; in no crowd it is there."""
        loop = asyncio.get_running_loop()
        if not self._entered:
            loop.call_soon(self._next_turn)
        if self._entered[owner] < self._per_turn and owner not in self._queues:
            self._entered[owner] += 1
            return
        turn = loop.create_future()
        self._queues.setdefault(owner, deque()).append(turn)
        await turn

    @property
    def _per_turn(self) -> int:
        return PER_TURN if len(self._held) == 1 else BESIDE_OTHERS

    def _next_turn(self) -> None:
        self._entered.clear()
        for owner, queue in list(self._queues.items()):
            while queue and self._entered[owner] < self._per_turn:
                turn = queue.popleft()
                if not turn.done():  # of a request that was given up
                    turn.set_result(None)
                    self._entered[owner] += 1
            if not queue:
                del self._queues[owner]
        if self._entered:
            asyncio.get_running_loop().call_soon(self._next_turn)
