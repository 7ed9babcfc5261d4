"""Blocking client of the farm's API."""

import uuid
from collections.abc import Iterator
from typing import Any, Self
from uuid import UUID

from api.client import sans_io
from api.client.event_stream import EventStream, StreamEvent
from api.client.parsing import as_batch, as_job, image_url
from api.client.transport import HttpTransport
from shared.jobs.wire import Batch, Job


class Farm:
    """A farm, as one API key sees it. Threads may share one; close it, or use it as a context manager.

    Every method raises `ClientError`. Transient errors are retried: reads, and submissions, which carry an idempotency key so
    that none is rendered twice.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self._transport = HttpTransport(url, api_key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.http.close()

    def submit(self, *, wait_s: float = 0.0, idempotency_key: str | None = None, **params: Any) -> Job:
        """Submit a job and return it once it is accepted, or once it is final if that happens within `wait_s` (at most 60).

        `params` are the fields of POST /v1/jobs. Pass your own idempotency key to make repeated runs of a program submit one job.
        """
        key = idempotency_key or str(uuid.uuid4())
        return as_job(self._transport.run(sans_io.submit(params, key=key, wait_s=wait_s)))

    def job(self, job_id: UUID | str) -> Job:
        """Fetch a job as it is now."""
        return as_job(self._transport.run(sans_io.job(str(job_id))))

    def wait(self, job_id: UUID | str, timeout_s: float | None = None) -> Job:
        """Wait until a job is final. Raises `ClientError` with code `still_running` after `timeout_s`."""
        return as_job(self._transport.run(sans_io.finished(str(job_id), timeout_s=timeout_s)))

    def jobs(self, **filters: str) -> Iterator[Job]:
        """Iterate over the jobs, newest first. Pages are fetched as the caller iterates."""
        query: dict[str, Any] = dict(filters)
        while True:
            bodies, cursor = self._transport.run(sans_io.page(query))
            yield from map(as_job, bodies)
            if cursor is None:
                return
            query["cursor"] = cursor

    def cancel(self, job_id: UUID | str) -> Job:
        """Cancel a queued or running job."""
        return as_job(self._transport.run(sans_io.cancel(str(job_id))))

    def stream(self, job_id: UUID | str, *, previews: bool = False) -> Iterator[StreamEvent]:
        """Yield a `Job` now and at each change of state, `Steps` as it progresses, `Preview` if asked; ends with the final state.

        A broken connection resumes after the last event received. Raises `ClientError` once the farm is away for a minute.
        """
        return self._transport.stream(EventStream(str(job_id), previews=previews))

    def image(self, job: Job, index: int = 0) -> bytes:
        """Fetch the bytes of one image of a job that has succeeded."""
        return self._transport.run(sans_io.image(image_url(job, index)))

    def input(self, job_id: UUID | str, field: str = "init_image") -> bytes:
        """Fetch the `init_image` or `mask_image` that a job started from, as PNG."""
        return self._transport.run(sans_io.input_picture(str(job_id), field))

    def checkpoints(self) -> list[dict[str, Any]]:
        """List the checkpoints: how near workers have each, and why they refuse others."""
        return self._transport.run(sans_io.listing("/v1/checkpoints", "checkpoints"))

    def upload(self, data: bytes) -> str:
        """Upload a picture and return its id. `init_image` and `mask_image` accept the id for a day."""
        return self._transport.run(sans_io.upload(data))

    def submit_batch(self, *, idempotency_key: str | None = None, **fields: Any) -> Batch:
        """Submit up to 1,000 jobs, all or none. `fields` are those of POST /v1/batches."""
        key = idempotency_key or str(uuid.uuid4())
        return as_batch(self._transport.run(sans_io.submit_batch(fields, key=key)))

    def batch(self, batch_id: UUID | str) -> Batch:
        """Fetch a batch as it is now."""
        return as_batch(self._transport.run(sans_io.document(sans_io.batch_path(str(batch_id)))))

    def wait_batch(self, batch_id: UUID | str, timeout_s: float | None = None) -> Batch:
        """Wait until all jobs of a batch are final. Raises `ClientError` with code `still_running` after `timeout_s`."""
        return as_batch(self._transport.run(sans_io.finished_batch(str(batch_id), timeout_s=timeout_s)))

    def cancel_batch(self, batch_id: UUID | str) -> Batch:
        """Cancel the unfinished jobs of a batch."""
        return as_batch(self._transport.run(sans_io.cancel_batch(str(batch_id))))

    def batch_jobs(self, batch_id: UUID | str) -> list[Job]:
        """Fetch the jobs of a batch, in the order of submission."""
        return [as_job(body) for body in self._transport.run(sans_io.batch_jobs(str(batch_id)))]
