"""Memory that all callers share: a part of it for each, and always some left for the next."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from shared.errors import TooBusy


@dataclass(eq=False, slots=True)
class _Wait:
    """A caller that waits for memory."""

    owner: str
    count: int
    granted: asyncio.Future[None]


class Memory:
    """Bytes that callers take and give back. For one event loop.

    An owner may hold as much as is then still free: half of the memory for the first, an eighth for each of seven. However many
    hold what they may, some is left, and one who waits holds up nobody but himself.
    """

    def __init__(self, size: int) -> None:
        self._free = size
        self._most = size // 2
        self._held: Counter[str] = Counter()
        self._waiting: deque[_Wait] = deque()

    async def take(self, owner: str, count: int, *, patience_s: float) -> None:
        """Take bytes, as soon as the owner's share has them. Raises `TooBusy` if it has not in time."""
        if self._fits(owner, count):
            self._grant(owner, count)
            return
        wait = _Wait(owner, count, asyncio.get_running_loop().create_future())
        self._waiting.append(wait)
        try:
            async with asyncio.timeout(patience_s):
                await wait.granted
        except BaseException as error:
            if wait.granted.done() and not wait.granted.cancelled():
                self.give(owner, count)  # granted and given up at the same moment
            if isinstance(error, TimeoutError):
                raise TooBusy("The api holds as much as it can for its callers; retry in a few seconds.") from None
            raise
        finally:
            if wait in self._waiting:
                self._waiting.remove(wait)

    def give(self, owner: str, count: int) -> None:
        """Give bytes back."""
        self._free += count
        self._held[owner] -= count
        if not self._held[owner]:
            del self._held[owner]
        for wait in list(self._waiting):
            # Who has given up is still in line until its task runs again.
            if not wait.granted.done() and self._fits(wait.owner, wait.count):
                self._waiting.remove(wait)
                self._grant(wait.owner, wait.count)
                wait.granted.set_result(None)

    @asynccontextmanager
    async def holding(self, owner: str, count: int, *, patience_s: float) -> AsyncIterator[None]:
        """Hold bytes for the block; what is larger than any share holds the largest. Raises as `take`."""
        count = min(count, self._most)
        await self.take(owner, count, patience_s=patience_s)
        try:
            yield
        finally:
            self.give(owner, count)

    def _fits(self, owner: str, count: int) -> bool:
        return self._held[owner] + count <= self._free - count if count else True

    def _grant(self, owner: str, count: int) -> None:
        self._free -= count
        if count:
            self._held[owner] += count
