"""Turns of the event loop, shared out between owners: in each one, every owner's requests take a few steps and no more.

The loop itself runs whatever is ready, so that a request has to wait between any two of its steps for one step of every other
request. Here it waits for one step of every other owner, however many requests each of them has under way; and turns of crowds
are followed by a rest (`api.limits.crowds`).
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Coroutine, Generator
from types import coroutine
from typing import Any, TypeVar

from api.limits.crowds import Crowds

# Steps of one owner in one turn of the loop, while it is alone and beside others.
PER_TURN, BESIDE_OTHERS = 16, 1

Result = TypeVar("Result")
# What a coroutine yields to the loop, and what the loop sends back.
Steps = Generator[Any, Any, Result]


class LoopTurns:
    """Turns of one event loop."""

    def __init__(self, crowds: Crowds | None = None) -> None:
        self._crowds = crowds or Crowds()
        self._rest_s = 0.0
        self._stepped: Counter[str] = Counter()
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}

    async def shared(self, owner: str, request: Coroutine[Any, Any, Result]) -> Result:
        """Run a request of an owner, which waits for its owner's turn before each of its steps."""
        self._crowds.enter(owner)
        try:
            return await self._in_turns(owner, request)
        finally:
            self._crowds.leave(owner)

    @coroutine
    def turn_of(self, owner: str) -> Steps[None]:
        """Wait for the owner's turn; for one of few requests it is there."""
        if self._crowds.has_few(owner):
            return
        loop = asyncio.get_running_loop()
        if not self._stepped:
            loop.call_soon(self._next_turn)
        if self._stepped[owner] < self._per_turn and owner not in self._queues:
            self._stepped[owner] += 1
            return
        turn = loop.create_future()
        self._queues.setdefault(owner, deque()).append(turn)
        yield from turn

    @coroutine
    def _in_turns(self, owner: str, request: Coroutine[Any, Any, Result]) -> Steps[Result]:
        step, given = request.send, None
        try:
            yield from self.turn_of(owner)
        except BaseException:
            request.close()
            raise
        while True:
            began_s = time.perf_counter()
            try:
                awaited = step(given)
            except StopIteration as end:
                result: Result = end.value
                return result
            finally:
                self._rest_s += self._crowds.rest_s(owner, time.perf_counter() - began_s)
            try:
                yield awaited
                yield from self.turn_of(owner)
            except BaseException as error:  # noqa: BLE001 - the request's, as is its end
                step, given = request.throw, error
            else:
                step, given = request.send, None

    @property
    def _per_turn(self) -> int:
        return BESIDE_OTHERS if self._crowds.is_shared else PER_TURN

    def _next_turn(self) -> None:
        self._crowds.look()
        self._stepped.clear()
        for owner, queue in list(self._queues.items()):
            while queue and self._stepped[owner] < self._per_turn:
                turn = queue.popleft()
                if not turn.done():  # of a request that was given up
                    turn.set_result(None)
                    self._stepped[owner] += 1
            if not queue:
                del self._queues[owner]
        if self._stepped:
            asyncio.get_running_loop().call_later(self._rest_s, self._next_turn)
        self._rest_s = 0.0
