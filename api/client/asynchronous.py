"""The client for event loops."""

import uuid
from collections.abc import AsyncIterator
from typing import Any, Self
from uuid import UUID

from api.client import talks
from api.client.lines import AsyncLine
from api.client.reading import as_job, image_url
from shared.wire import Job


class AsyncFarm:
    """What `Farm` is, for one event loop: the same methods, awaited."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self._line = AsyncLine(url, api_key)

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
        return as_job(await self._line.carry(talks.submit(params, key=key, wait_s=wait_s)))

    async def job(self, job_id: UUID | str) -> Job:
        """Return a job as it is now."""
        return as_job(await self._line.carry(talks.job(str(job_id))))

    async def wait(self, job_id: UUID | str, timeout_s: float | None = None) -> Job:
        """Return a job once it is final. Raises `ClientError` with code `still_running` after `timeout_s`."""
        return as_job(await self._line.carry(talks.finished(str(job_id), timeout_s=timeout_s)))

    async def jobs(self, **filters: str) -> AsyncIterator[Job]:
        """Walk through the jobs, newest first, page by page as far as the caller goes."""
        query: dict[str, Any] = dict(filters)
        while True:
            found, cursor = await self._line.carry(talks.page(query))
            for body in found:
                yield as_job(body)
            if cursor is None:
                return
            query["cursor"] = cursor

    async def cancel(self, job_id: UUID | str) -> Job:
        """Cancel a job; no success can follow."""
        return as_job(await self._line.carry(talks.cancel(str(job_id))))

    async def image(self, job: Job, index: int = 0) -> bytes:
        """Return the bytes of one image of a job that has succeeded."""
        return await self._line.carry(talks.image(image_url(job, index)))

    async def checkpoints(self) -> list[dict[str, Any]]:
        """Return the checkpoints that jobs may name."""
        return await self._line.carry(talks.listing("/v1/checkpoints", "checkpoints"))
