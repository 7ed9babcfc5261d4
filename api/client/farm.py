"""The blocking client."""

import uuid
from collections.abc import Iterator
from typing import Any, Self
from uuid import UUID

from api.client import sans_io
from api.client.event_stream import EventStream, News
from api.client.parsing import as_batch, as_job, image_url
from api.client.transport import HttpTransport
from shared.jobs.wire import Batch, Job


class Farm:
    """One farm, as one API key sees it. May be shared by threads; close it, or use it as a context manager.

    Every method raises `ClientError`. What is safe to repeat is repeated: reads, and submissions, which travel under an
    idempotency key so that none is rendered twice.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self._line = HttpTransport(url, api_key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._line.http.close()

    def submit(self, *, wait_s: float = 0.0, idempotency_key: str | None = None, **params: Any) -> Job:
        """Submit a job and return it as it is once accepted, or up to `wait_s` seconds (at most 60) later.

        `params` are the fields of POST /v1/jobs. An idempotency key of your own makes calls of several runs one job.
        """
        key = idempotency_key or str(uuid.uuid4())
        return as_job(self._line.carry(sans_io.submit(params, key=key, wait_s=wait_s)))

    def job(self, job_id: UUID | str) -> Job:
        """Return a job as it is now."""
        return as_job(self._line.carry(sans_io.job(str(job_id))))

    def wait(self, job_id: UUID | str, timeout_s: float | None = None) -> Job:
        """Return a job once it is final. Raises `ClientError` with code `still_running` after `timeout_s`."""
        return as_job(self._line.carry(sans_io.finished(str(job_id), timeout_s=timeout_s)))

    def jobs(self, **filters: str) -> Iterator[Job]:
        """Walk through the jobs, newest first, page by page as far as the caller goes."""
        query: dict[str, Any] = dict(filters)
        while True:
            found, cursor = self._line.carry(sans_io.page(query))
            yield from map(as_job, found)
            if cursor is None:
                return
            query["cursor"] = cursor

    def cancel(self, job_id: UUID | str) -> Job:
        """Cancel a job; no success can follow."""
        return as_job(self._line.carry(sans_io.cancel(str(job_id))))

    def stream(self, job_id: UUID | str, *, previews: bool = False) -> Iterator[News]:
        """Follow a job to its end: a `Job` now and at each change of state, `Steps` between, a `Preview` as images take shape.

        A broken connection is taken up again after the last event heard; a farm away for a minute raises.
        """
        return self._line.tell(EventStream(str(job_id), previews=previews))

    def image(self, job: Job, index: int = 0) -> bytes:
        """Return the bytes of one image of a job that has succeeded."""
        return self._line.carry(sans_io.image(image_url(job, index)))

    def checkpoints(self) -> list[dict[str, Any]]:
        """Return the checkpoints that jobs may name."""
        return self._line.carry(sans_io.listing("/v1/checkpoints", "checkpoints"))

    def upload(self, data: bytes) -> str:
        """Bring a picture; the id that this returns stands for it in `init_image` and `mask_image`, for a day."""
        return self._line.carry(sans_io.upload(data))

    def submit_batch(self, *, idempotency_key: str | None = None, **wanted: Any) -> Batch:
        """Submit up to 1,000 jobs, all or none. `wanted` are the fields of POST /v1/batches."""
        key = idempotency_key or str(uuid.uuid4())
        return as_batch(self._line.carry(sans_io.submit_batch(wanted, key=key)))

    def batch(self, batch_id: UUID | str) -> Batch:
        """Return a batch as it is now."""
        return as_batch(self._line.carry(sans_io.document(sans_io.batch_path(str(batch_id)))))

    def wait_batch(self, batch_id: UUID | str, timeout_s: float | None = None) -> Batch:
        """Return a batch once all its jobs have ended. Raises `ClientError` with code `still_running` after `timeout_s`."""
        return as_batch(self._line.carry(sans_io.finished_batch(str(batch_id), timeout_s=timeout_s)))

    def cancel_batch(self, batch_id: UUID | str) -> Batch:
        """Cancel what has not ended of a batch."""
        return as_batch(self._line.carry(sans_io.cancel_batch(str(batch_id))))

    def batch_jobs(self, batch_id: UUID | str) -> list[Job]:
        """Return the jobs of a batch, in its order."""
        return [as_job(body) for body in self._line.carry(sans_io.batch_jobs(str(batch_id)))]
