"""Group commit: what is submitted while a transaction runs is stored together in the next one. Who comes alone waits for nobody.

Threads of its own store the groups, so commits and round trips are paid once for a crowd. An owner with several items waiting has
them stored in groups of its own, one at a time: so it keeps nobody else waiting, nor does a batch of it that is being stored and
holds its turns in the queue.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock, Thread
from types import TracebackType
from typing import Generic, Self, TypeVar

import structlog

from shared.errors import DatabaseUnavailable
from shared.infra.db import UNSURE

# While one group is written to the disk, or waits for an owner whose batch is being stored, others' go on.
THREADS = 3
# Bounds how long those at the front of a group wait for the rest: about 10 ms.
GROUP = 64
# A database that hangs holds up the groups under way; those behind them are told so.
PATIENCE_S = 14.0

log = structlog.get_logger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(eq=False, slots=True)
class _Waiting(Generic[Item, Result]):
    owner: str
    item: Item
    result: asyncio.Future[Result]
    is_under_way: bool = False


class GroupCommit(Generic[Item, Result]):
    """Stores items in groups. `store` gets a group and returns the result of each, or the error that refuses it.

    If it raises, nothing of the group may be stored; each item is then tried alone, so that one that cannot be stored harms no
    other. Belongs to one event loop.
    """

    def __init__(self, store: Callable[[Sequence[Item]], Sequence[Result | Exception]]) -> None:
        self._store = store
        self._lock = Lock()
        self._by_owner: dict[str, deque[_Waiting[Item, Result]]] = {}
        # Owners with a group under way.
        self._under_way: set[str] = set()
        # A token for each item, and for each owner who waits at its group's end; it may find nothing to do. False ends a thread.
        self._arrivals: SimpleQueue[bool] = SimpleQueue()
        self._threads = [Thread(target=self._run, name=f"group commit {number}") for number in range(THREADS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _ in self._threads:
            self._arrivals.put(False)
        for thread in self._threads:
            thread.join()

    async def add(self, owner: str, item: Item) -> Result:
        """Store an item and return its result. Raises what refuses it, and `DatabaseUnavailable` when its patience ends."""
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        with self._lock:
            self._by_owner.setdefault(owner, deque()).append(waiting := _Waiting(owner, item, result))
        self._arrivals.put(True)
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await result
        except TimeoutError:
            with self._lock:
                is_unsure = waiting.is_under_way
            raise DatabaseUnavailable(UNSURE if is_unsure else "") from None

    def _run(self) -> None:
        while self._arrivals.get():
            self._store_next_group()

    def _store_next_group(self) -> None:
        # A call of its own: a thread that waits for the next item keeps nothing of the last group, whose bodies may be large.
        if group := self._next_group():
            outcomes = self._stored([waiting.item for waiting in group])
            told = list(zip(group, outcomes, strict=True))
            group[0].result.get_loop().call_soon_threadsafe(_tell, told)
            self._end(group)

    def _next_group(self) -> Sequence[_Waiting[Item, Result]]:
        """Take what the first in line has waiting if that is several items, else one of each owner who has no more.

        Nothing of an owner of whom a group is under way. Who has given up is left out.
        """
        group: list[_Waiting[Item, Result]] = []
        with self._lock:
            free = [owner for owner in self._by_owner if owner not in self._under_way]
            is_crowd = bool(free) and len(self._by_owner[free[0]]) > 1
            owners = free[:1] if is_crowd else [owner for owner in free if len(self._by_owner[owner]) == 1][:GROUP]
            for owner in owners:
                line = deque(waiting for waiting in self._by_owner.pop(owner) if not waiting.result.done())
                group += [line.popleft() for _ in range(min(GROUP, len(line)))]
                if line:
                    self._by_owner[owner] = line
            for waiting in group:
                waiting.is_under_way = True
            self._under_way.update(waiting.owner for waiting in group)
        return group

    def _end(self, group: Sequence[_Waiting[Item, Result]]) -> None:
        """Let the owners of a group have their next items stored, at whose arrival threads found nothing to do."""
        with self._lock:
            owners = {one.owner for one in group}
            self._under_way -= owners
            waiting = owners & self._by_owner.keys()
        for _ in waiting:
            self._arrivals.put(True)

    def _stored(self, items: Sequence[Item]) -> Sequence[Result | Exception]:
        try:
            return self._store(items)
        except Exception as error:
            if len(items) == 1 or isinstance(error, DatabaseUnavailable):
                return [error] * len(items)
            log.warning("group.divided", items=len(items), error=type(error).__name__, exc_info=True)
            return [outcome for item in items for outcome in self._stored([item])]


def _tell(told: Sequence[tuple[_Waiting[Item, Result], Result | Exception]]) -> None:
    for waiting, outcome in told:
        if waiting.result.done():
            continue
        if isinstance(outcome, Exception):
            waiting.result.set_exception(outcome)
        else:
            waiting.result.set_result(outcome)
