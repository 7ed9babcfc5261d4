"""The client for event loops."""

import uuid
from collections.abc import AsyncIterator
from typing import Any, Self
from uuid import UUID

from api.client import sans_io
from api.client.event_stream import EventStream, News
from api.client.parsing import as_batch, as_job, image_url
from api.client.transport import AsyncHttpTransport
from shared.jobs.wire import Batch, Job


class AsyncFarm:
    """What `Farm` is, for one event loop: the same methods, awaited."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self._line = AsyncHttpTransport(url, api_key)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._line.http.aclose()

    async def submit(self, *, wait_s: float = 0.0, idempotency_key: str | None = None, **params: Any) -> Job:
        """Submit a job and return it as it is once accepted, or up to `wait_s` seconds (at most 60) later.

        `params` are the fields of POST /v1/jobs. An idempotency key of your own makes calls of several runs one job.
        """
        key = idempotency_key or str(uuid.uuid4())
        return as_job(await self._line.carry(sans_io.submit(params, key=key, wait_s=wait_s)))

    async def job(self, job_id: UUID | str) -> Job:
        """Return a job as it is now."""
        return as_job(await self._line.carry(sans_io.job(str(job_id))))

    async def wait(self, job_id: UUID | str, timeout_s: float | None = None) -> Job:
        """Return a job once it is final. Raises `ClientError` with code `still_running` after `timeout_s`."""
        return as_job(await self._line.carry(sans_io.finished(str(job_id), timeout_s=timeout_s)))

    async def jobs(self, **filters: str) -> AsyncIterator[Job]:
        """Walk through the jobs, newest first, page by page as far as the caller goes."""
        query: dict[str, Any] = dict(filters)
        while True:
            found, cursor = await self._line.carry(sans_io.page(query))
            for body in found:
                yield as_job(body)
            if cursor is None:
                return
            query["cursor"] = cursor

    async def cancel(self, job_id: UUID | str) -> Job:
        """Cancel a job; no success can follow."""
        return as_job(await self._line.carry(sans_io.cancel(str(job_id))))

    def stream(self, job_id: UUID | str, *, previews: bool = False) -> AsyncIterator[News]:
        """Follow a job to its end: a `Job` now and at each change of state, `Steps` between, a `Preview` as images take shape.

        A broken connection is taken up again after the last event heard; a farm away for a minute raises.
        """
        return self._line.tell(EventStream(str(job_id), previews=previews))

    async def image(self, job: Job, index: int = 0) -> bytes:
        """Return the bytes of one image of a job that has succeeded."""
        return await self._line.carry(sans_io.image(image_url(job, index)))

    async def checkpoints(self) -> list[dict[str, Any]]:
        """Return the checkpoints that jobs may name."""
        return await self._line.carry(sans_io.listing("/v1/checkpoints", "checkpoints"))

    async def upload(self, data: bytes) -> str:
        """Bring a picture; the id that this returns stands for it in `init_image` and `mask_image`, for a day."""
        return await self._line.carry(sans_io.upload(data))

    async def submit_batch(self, *, idempotency_key: str | None = None, **wanted: Any) -> Batch:
        """Submit up to 1,000 jobs, all or none. `wanted` are the fields of POST /v1/batches."""
        key = idempotency_key or str(uuid.uuid4())
        return as_batch(await self._line.carry(sans_io.submit_batch(wanted, key=key)))

    async def batch(self, batch_id: UUID | str) -> Batch:
        """Return a batch as it is now."""
        return as_batch(await self._line.carry(sans_io.document(sans_io.batch_path(str(batch_id)))))

    async def wait_batch(self, batch_id: UUID | str, timeout_s: float | None = None) -> Batch:
        """Return a batch once all its jobs have ended. Raises `ClientError` with code `still_running` after `timeout_s`."""
        return as_batch(await self._line.carry(sans_io.finished_batch(str(batch_id), timeout_s=timeout_s)))

    async def cancel_batch(self, batch_id: UUID | str) -> Batch:
        """Cancel what has not ended of a batch."""
        return as_batch(await self._line.carry(sans_io.cancel_batch(str(batch_id))))

    async def batch_jobs(self, batch_id: UUID | str) -> list[Job]:
        """Return the jobs of a batch, in its order."""
        return [as_job(body) for body in await self._line.carry(sans_io.batch_jobs(str(batch_id)))]
