"""Fan-out of job updates: one Redis subscription per process serves every long poll and event stream.

A waiting request holds no thread, no query and no connection. Events are hints, the row is the truth: a new subscriber reads
the row after it has subscribed, a renewed Redis subscription reads all rows with subscribers again, and a slow poll compares
their versions. A lost event costs seconds, never a hang. Row reads are coalesced (`batched_reads`).
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar
from uuid import UUID

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from api.jobs import queries
from api.limits.owners import NOBODY
from api.limits.workrooms import Workroom
from api.waiting.batched_reads import BatchedReader
from shared.errors import DatabaseUnavailable
from shared.infra import events
from shared.infra.db import Database
from shared.infra.events import JobEvent
from shared.infra.redis_faults import explained
from shared.infra.tables import JobRow
from shared.vocabulary.states import JobState

POLL_S = 3.0
_RECONNECT_S = 1.0
_LISTEN_S = 5.0
_CANCEL_S = 0.1

T = TypeVar("T")
log = structlog.get_logger(__name__)


@dataclass(eq=False, slots=True)
class Subscription:
    """Mailbox of one subscriber: holds the newest row or progress of a job. A slow subscriber skips what was overtaken."""

    version: int = 0
    _row: JobRow | None = None
    _progress: JobEvent | None = None
    _bell: asyncio.Event = field(default_factory=asyncio.Event)

    def offer_row(self, row: JobRow) -> None:
        """Replace the content by a row, if it is newer."""
        if row.version > self.version:
            self._row, self._progress, self.version = row, None, row.version
            self._bell.set()

    def offer_progress(self, progress: JobEvent) -> None:
        """Replace the content by a progress event, if it is newer. The event carries all there is to show."""
        if progress.version is not None and progress.version > self.version:
            self._progress, self.version = progress, progress.version
            self._bell.set()

    async def next(self) -> JobRow | JobEvent:
        """Take the content, waiting until there is some."""
        while True:
            if self._row is not None:
                row, self._row = self._row, None
                return row
            if self._progress is not None:
                progress, self._progress = self._progress, None
                return progress
            self._bell.clear()
            await self._bell.wait()


class JobUpdates:
    """Hub between the Redis channel and the subscribers of this process. An async context manager, for one event loop."""

    def __init__(self, db: Database, redis: Redis, room: Workroom, *, poll_s: float = POLL_S) -> None:
        self._db = db
        self._room = room
        self._redis = redis
        self._poll_s = poll_s
        self._reader = BatchedReader(self._read, room)
        self._subscriptions: defaultdict[UUID, set[Subscription]] = defaultdict(set)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Start to listen. Redis need not be up yet."""
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._poll())]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening."""
        running = set(self._tasks)
        while running:
            # Again until it is heard: redis-py loses a cancellation that comes together with what it reads.
            for task in running:
                task.cancel()
            running = (await asyncio.wait(running, timeout=_CANCEL_S))[1]
        await self._reader.close()
        await self._redis.aclose()

    @property
    def subscriber_count(self) -> int:
        """How many requests wait, in this process."""
        return sum(map(len, self._subscriptions.values()))

    async def row(self, job_id: UUID) -> JobRow | None:
        """Read a job's row, with others in one query; None for an unknown job. Raises `DatabaseUnavailable`."""
        return await self._reader.row(job_id)

    async def wait_until_final(self, job_id: UUID, timeout_s: float) -> JobRow | None:
        """Return a job's row once it is final, or as it is after `timeout_s` seconds; None for an unknown job.

        Raises `DatabaseUnavailable`.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), aclosing(self.subscribe(job_id)) as updates:
                async for update in updates:
                    if isinstance(update, JobRow) and JobState(update.state).is_final:
                        return update
        return await self.row(job_id)

    async def subscribe(self, job_id: UUID) -> AsyncGenerator[JobRow | JobEvent]:
        """Yield a job's row now and after each change of state, progress events between; the final row last.

        Versions only grow. Updates that are overtaken before the subscriber takes them are skipped. Raises `DatabaseUnavailable`
        before the first row.
        """
        with self._subscription(job_id) as subscription:
            row = await self.row(job_id)
            if row is None:
                return
            subscription.offer_row(row)
            while True:
                update = await subscription.next()
                yield update
                if isinstance(update, JobRow) and JobState(update.state).is_final:
                    return

    @contextmanager
    def _subscription(self, job_id: UUID) -> Iterator[Subscription]:
        subscription = Subscription()
        self._subscriptions[job_id].add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions[job_id].discard(subscription)
            if not self._subscriptions[job_id]:
                del self._subscriptions[job_id]

    def _dispatch(self, event: JobEvent) -> None:
        if event.job_id not in self._subscriptions:
            return
        if event.is_progress:
            for subscription in self._subscriptions[event.job_id]:
                subscription.offer_progress(event)
        else:
            self._request_row(event.job_id)

    def _request_row(self, job_id: UUID) -> None:
        self._reader.request(job_id).add_done_callback(self._deliver)

    def _deliver(self, read: asyncio.Future[JobRow | None]) -> None:
        row = None if read.exception() else read.result()
        if row is not None and row.id in self._subscriptions:
            for subscription in self._subscriptions[row.id]:
                subscription.offer_row(row)

    async def _listen(self) -> None:
        while True:
            try:
                await self._receive()
            except (RedisError, OSError) as error:
                log.warning("waiting.disconnected", **explained(error).log_fields)
            except Exception:  # a message that cannot be read must not leave everyone waiting
                log.exception("waiting.crashed")
            await asyncio.sleep(_RECONNECT_S)

    async def _receive(self) -> None:
        async with self._redis.pubsub() as pubsub:
            await pubsub.subscribe(events.CHANNEL)
            while True:
                message = await pubsub.get_message(timeout=_LISTEN_S)
                if message is None:
                    continue
                if message["type"] == "subscribe":
                    # Also after the client has reconnected by itself: what was published meanwhile is lost.
                    for job_id in self._subscriptions:
                        self._request_row(job_id)
                elif message["type"] == "message":
                    for event in events.parse(message["data"]):
                        self._dispatch(event)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            newest = {
                job_id: max(subscription.version for subscription in subscriptions)
                for job_id, subscriptions in self._subscriptions.items()
            }
            if not newest:
                continue
            try:
                versions = await _run_to_completion(self._room.run(NOBODY, self._versions, list(newest)))
            except DatabaseUnavailable as error:
                log.warning("waiting.blind", **error.log_fields)
            except Exception:
                log.exception("waiting.crashed")
            else:
                for job_id, version in versions.items():
                    if version > newest[job_id]:
                        self._request_row(job_id)

    def _read(self, job_ids: Sequence[UUID]) -> Mapping[UUID, JobRow]:
        with self._db.transaction() as session:
            return queries.rows(session, job_ids)

    def _versions(self, job_ids: Sequence[UUID]) -> Mapping[UUID, int]:
        with self._db.transaction() as session:
            return queries.versions(session, job_ids)


async def _run_to_completion(query: Coroutine[Any, Any, T]) -> T:
    """Await a query to its end even if canceled: its connection must be back before the pool is closed."""
    running = asyncio.ensure_future(query)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise
