"""A turnstile between keys and work: a crowd of requests of one owner lets those of others pass between.

Its requests take turns at the event loop, step by step, and of those under way an owner holds no more than are then left free for
others, however long they wait for a job.
"""

from collections import Counter
from collections.abc import Callable

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api import problems
from api.limits.loop_turns import LoopTurns
from shared.errors import TooBusy


class Turnstile:
    """ASGI middleware inside of the keys, for one event loop. `places` bounds the requests under way of all owners.

    `sharer` tells whose place a request takes, and `turns_of` the turns of the loop that serves it.
    """

    def __init__(
        self, app: ASGIApp, *, places: int, turns_of: Callable[[Scope], LoopTurns], sharer: Callable[[Scope], str]
    ) -> None:
        self._app = app
        self._turns_of = turns_of
        self._sharer = sharer
        self._free = places
        self._held: Counter[str] = Counter()

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
            await self._turns_of(scope).shared(owner, self._served(scope, receive, send))
        finally:
            self._hold(owner, -1)

    async def _served(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def _hold(self, owner: str, count: int) -> None:
        self._free -= count
        self._held[owner] += count
        if not self._held[owner]:
            del self._held[owner]
