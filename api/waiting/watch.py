"""Waiting for jobs without a thread, a query or a connection of one's own.

One Redis subscription per process hears of every job and wakes those who wait for it. Events are hints, the row is the truth:
whoever begins to wait reads it after having subscribed, a renewed subscription has all waited-for rows read again, and so does
a slow re-check of their versions. A lost event costs seconds, never a hang.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar
from uuid import UUID

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from api.jobs import queries
from api.waiting.batched_reads import BatchedReader
from shared.errors import DatabaseUnavailable
from shared.infra import events
from shared.infra.db import Database, JobRow
from shared.infra.events import JobEvent
from shared.vocabulary.states import JobState

RECHECK_S = 3.0
_RECONNECT_S = 1.0
_LISTEN_S = 5.0
_CANCEL_S = 0.1

T = TypeVar("T")
log = structlog.get_logger(__name__)


@dataclass(eq=False, slots=True)
class Watch:
    """One who waits: the newest news of a job that it has not taken yet. A slow one misses what was overtaken."""

    version: int = 0
    _row: JobRow | None = None
    _progress: JobEvent | None = None
    _bell: asyncio.Event = field(default_factory=asyncio.Event)

    def show(self, row: JobRow) -> None:
        """Offer a row that was just read."""
        if row.version > self.version:
            self._row, self._progress, self.version = row, None, row.version
            self._bell.set()

    def tell(self, progress: JobEvent) -> None:
        """Offer progress, which events carry whole."""
        if progress.version is not None and progress.version > self.version:
            self._progress, self.version = progress, progress.version
            self._bell.set()

    async def next(self) -> JobRow | JobEvent:
        """Wait for news."""
        while True:
            if self._row is not None:
                row, self._row = self._row, None
                return row
            if self._progress is not None:
                progress, self._progress = self._progress, None
                return progress
            self._bell.clear()
            await self._bell.wait()


class Waiting:
    """Everyone who waits for a job in this process. Use as an async context manager around the life of the event loop."""

    def __init__(self, db: Database, redis: Redis, *, recheck_s: float = RECHECK_S) -> None:
        self._db = db
        self._redis = redis
        self._recheck_s = recheck_s
        self._reader = BatchedReader(self._read)
        self._watches: defaultdict[UUID, set[Watch]] = defaultdict(set)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Begin to listen; Redis need not be there yet."""
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._recheck())]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening."""
        going = set(self._tasks)
        while going:
            # Again until it is heard: redis-py loses a cancellation that comes together with what it reads.
            for task in going:
                task.cancel()
            going = (await asyncio.wait(going, timeout=_CANCEL_S))[1]
        await self._reader.close()
        await self._redis.aclose()

    @property
    def watchers(self) -> int:
        """How many wait."""
        return sum(map(len, self._watches.values()))

    async def row(self, job_id: UUID) -> JobRow | None:
        """Return a job's row as it is now, None for a job that never was. Raises `DatabaseUnavailable`."""
        return await self._reader.row(job_id)

    async def final(self, job_id: UUID, timeout_s: float) -> JobRow | None:
        """Return a job's row once it is final, or as it is after `timeout_s` seconds; None for a job that never was.

        Raises `DatabaseUnavailable`.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), aclosing(self.changes(job_id)) as changes:
                async for change in changes:
                    if isinstance(change, JobRow) and JobState(change.state).is_final:
                        return change
        return await self.row(job_id)

    async def changes(self, job_id: UUID) -> AsyncGenerator[JobRow | JobEvent]:
        """Yield a job's row now and whenever its state may have changed, and its progress between; the final row last.

        Versions only grow. What is overtaken before it was taken is left out. Raises `DatabaseUnavailable` before the first row.
        """
        with self._watch(job_id) as watch:
            row = await self.row(job_id)
            if row is None:
                return
            watch.show(row)
            while True:
                change = await watch.next()
                yield change
                if isinstance(change, JobRow) and JobState(change.state).is_final:
                    return

    @contextmanager
    def _watch(self, job_id: UUID) -> Iterator[Watch]:
        watch = Watch()
        self._watches[job_id].add(watch)
        try:
            yield watch
        finally:
            self._watches[job_id].discard(watch)
            if not self._watches[job_id]:
                del self._watches[job_id]

    def _hear(self, event: JobEvent) -> None:
        if event.job_id not in self._watches:
            return
        if event.is_progress:
            for watch in self._watches[event.job_id]:
                watch.tell(event)
        else:
            self._refresh(event.job_id)

    def _refresh(self, job_id: UUID) -> None:
        self._reader.want(job_id).add_done_callback(self._show)

    def _show(self, read: asyncio.Future[JobRow | None]) -> None:
        row = None if read.exception() else read.result()
        if row is not None and row.id in self._watches:
            for watch in self._watches[row.id]:
                watch.show(row)

    async def _listen(self) -> None:
        while True:
            try:
                await self._follow()
            except (RedisError, OSError) as error:
                log.warning("waiting.disconnected", error=str(error), fix=events.FIX)
            except Exception:  # a message that cannot be read must not leave everyone waiting
                log.exception("waiting.crashed")
            await asyncio.sleep(_RECONNECT_S)

    async def _follow(self) -> None:
        async with self._redis.pubsub() as pubsub:
            await pubsub.subscribe(events.CHANNEL)
            while True:
                message = await pubsub.get_message(timeout=_LISTEN_S)
                if message is None:
                    continue
                if message["type"] == "subscribe":
                    # Also after the client has reconnected by itself: what was published meanwhile is lost.
                    for job_id in self._watches:
                        self._refresh(job_id)
                elif message["type"] == "message":
                    for event in events.parse(message["data"]):
                        self._hear(event)

    async def _recheck(self) -> None:
        while True:
            await asyncio.sleep(self._recheck_s)
            known = {job_id: max(watch.version for watch in watches) for job_id, watches in self._watches.items()}
            if not known:
                continue
            try:
                versions = await _to_its_end(run_in_threadpool(self._versions, list(known)))
            except DatabaseUnavailable as error:
                log.warning("waiting.blind", **error.told)
            except Exception:
                log.exception("waiting.crashed")
            else:
                for job_id, version in versions.items():
                    if version > known[job_id]:
                        self._refresh(job_id)

    def _read(self, job_ids: Sequence[UUID]) -> Mapping[UUID, JobRow]:
        with self._db.transaction() as session:
            return queries.rows(session, job_ids)

    def _versions(self, job_ids: Sequence[UUID]) -> Mapping[UUID, int]:
        with self._db.transaction() as session:
            return queries.versions(session, job_ids)


async def _to_its_end(query: Coroutine[Any, Any, T]) -> T:
    """Await a query even if canceled meanwhile: its connection must be back before the pool is closed."""
    running = asyncio.ensure_future(query)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


async def while_connected(request: Request, wait: Callable[[], Coroutine[Any, Any, T]]) -> T | None:
    """Wait for as long as the client does; None when it has gone, and the wait was canceled.

    To be called once the request's body has been read.
    """
    waiting = asyncio.create_task(wait())
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() else None
    finally:
        for task in (waiting, gone):
            task.cancel()
        await asyncio.gather(waiting, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
