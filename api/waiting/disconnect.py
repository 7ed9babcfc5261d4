"""Cancel a wait when its client disconnects."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

T = TypeVar("T")


async def while_connected(request: Request, wait: Callable[[], Coroutine[Any, Any, T]]) -> T | None:
    """Await `wait()` and return its result; None if the client disconnects first, which cancels it.

    Call it only after the request's body has been read.
    """
    waiting = asyncio.create_task(wait())
    disconnected = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({waiting, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() else None
    finally:
        for task in (waiting, disconnected):
            task.cancel()
        await asyncio.gather(waiting, disconnected, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
