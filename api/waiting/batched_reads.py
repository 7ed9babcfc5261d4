"""Coalesced row reads (a dataloader): ids requested while a query runs go into the next one, so a crowd costs few queries."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from uuid import UUID

from api.limits.owners import NOBODY
from api.limits.workrooms import Workroom
from shared.errors import DatabaseUnavailable
from shared.infra.tables import JobRow

# Bounds what one query holds up: the first of a crowd are answered while the rest are read.
MAX_ROWS = 200
# A query may have to wait for the one before it; askers do not wait for both to fail.
ANSWER_S = 12.0

Row = JobRow | None


class BatchedReader:
    """Reads job rows by id with one query at a time. Lives on one event loop."""

    def __init__(self, read: Callable[[Sequence[UUID]], Mapping[UUID, JobRow]], room: Workroom) -> None:
        self._read = read
        self._room = room
        self._pending: dict[UUID, asyncio.Future[Row]] = {}
        self._task: asyncio.Task[None] | None = None

    async def row(self, job_id: UUID) -> Row:
        """Return a job's row as read after this call, or None. Rows are shared between callers: never change one.

        Raises `DatabaseUnavailable`.
        """
        # Shielded, because others may wait for the same future.
        try:
            return await asyncio.wait_for(asyncio.shield(self.request(job_id)), ANSWER_S)
        except TimeoutError as error:
            raise DatabaseUnavailable from error

    def request(self, job_id: UUID) -> asyncio.Future[Row]:
        """Add a job to the next query; the future gets its row."""
        if job_id not in self._pending:
            self._pending[job_id] = asyncio.get_running_loop().create_future()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="reader")
        return self._pending[job_id]

    async def close(self) -> None:
        """Wait for the running query, so that its connection is back before the pool is closed."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        while self._pending:
            batch = dict(islice(self._pending.items(), MAX_ROWS))
            for job_id in batch:
                # Whoever asks from here on may know of a change that this query misses, and gets the next.
                del self._pending[job_id]
            await self._resolve(batch)

    async def _resolve(self, batch: Mapping[UUID, asyncio.Future[Row]]) -> None:
        try:
            rows = await self._room.run(NOBODY, self._read, list(batch))
        except Exception as error:  # noqa: BLE001 - every asker gets it
            for future in batch.values():
                future.set_exception(error)
                future.exception()  # seen: an asker that has gone is no reason for a complaint
        else:
            for job_id, future in batch.items():
                future.set_result(rows.get(job_id))
