"""Pieces of what is large: of each owner one in a turn of the event loop, however many come at once."""

import asyncio
from weakref import WeakValueDictionary


class Pieces:
    """Turns of one event loop, for the pieces of large bodies and of large answers."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def turn_of(self, owner: str) -> None:
        """Wait for the owner's next turn: in no crowd it is the loop's next."""
        lock = self._locks.setdefault(owner, asyncio.Lock())
        async with lock:
            await asyncio.sleep(0)
