"""API client of the command line. Jobs stay JSON objects, so that it works with farms of other releases."""

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from api.client import sans_io
from api.client.problems import ClientError
from api.client.sans_io import TRIES, JobBody
from api.client.transport import HttpTransport

__all__ = ["DEFAULT_URL", "ClientError", "FarmClient", "Front", "JobBody", "JobId"]

DEFAULT_URL = "http://127.0.0.1:8000"

JobId: TypeAlias = str


@dataclass(frozen=True, slots=True)
class Front:
    """URL and API key of the farm that a command uses."""

    url: str
    api_key: str | None

    def connect(self) -> "FarmClient":
        """Return a client. Sends nothing yet."""
        return FarmClient(self.url, self.api_key)


class FarmClient:
    """API client. Use as a context manager; every request has a timeout. Every method raises `ClientError`."""

    def __init__(
        self, base_url: str, api_key: str | None = None, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._transport = HttpTransport(base_url, api_key, sleep=sleep)

    def __enter__(self) -> "FarmClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._transport.http.close()

    def submit(self, params: Mapping[str, Any]) -> JobBody:
        """Submit a job under a fresh idempotency key."""
        return self._transport.run(sans_io.submit(params, key=str(uuid.uuid4())))

    def job(self, job_id: JobId, *, tries: int = TRIES) -> JobBody:
        """Fetch a job as it is now."""
        return self._transport.run(sans_io.job(job_id, tries=tries))

    def jobs(self, *, limit: int, **filters: str | None) -> list[JobBody]:
        """Fetch the newest jobs that match the filters, at most `limit`."""
        return self._transport.run(sans_io.jobs(limit=limit, **filters))

    def cancel(self, job_id: JobId) -> JobBody:
        """Cancel a job."""
        return self._transport.run(sans_io.cancel(job_id))

    def retry(self, job_id: JobId) -> JobBody:
        """Retry a job and return the new one."""
        return self._transport.run(sans_io.retry(job_id))

    def retry_many(self, **filters: Any) -> dict[str, str]:
        """Retry the failed and expired jobs that match the filters; new ids by old ones."""
        return self._transport.run(sans_io.retry_many(filters))

    def delete(self, job_id: JobId) -> None:
        """Delete a final job with its images."""
        self._transport.run(sans_io.delete(job_id))

    def submit_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Submit a batch under a fresh idempotency key."""
        return self._transport.run(sans_io.submit_batch(batch, key=str(uuid.uuid4())))

    def batch(self, batch_id: str) -> dict[str, Any]:
        """Fetch a batch as it is now."""
        return self._transport.run(sans_io.document(sans_io.batch_path(batch_id)))

    def batch_jobs(self, batch_id: str) -> list[JobBody]:
        """Fetch the jobs of a batch, in the order of submission."""
        return self._transport.run(sans_io.batch_jobs(batch_id))

    def cancel_batch(self, batch_id: str) -> None:
        """Cancel the unfinished jobs of a batch."""
        self._transport.run(sans_io.cancel_batch(batch_id))

    def sheet(self, batch_id: str) -> bytes:
        """Fetch the contact sheet of a batch, WebP."""
        return self._transport.run(sans_io.image(f"{sans_io.batch_path(batch_id)}/sheet"))

    def drain(self, worker_id: str, *, resume: bool = False) -> None:
        """Drain a worker, or let it take jobs again."""
        self._transport.run(sans_io.drain(worker_id, resume=resume))

    def checkpoints(self) -> list[dict[str, Any]]:
        """List the checkpoints: how near workers have each, and why they refuse others."""
        return self._transport.run(sans_io.listing("/v1/checkpoints", "checkpoints"))

    def listing(self, path: str, name: str) -> list[dict[str, Any]]:
        """Fetch the list `name` in the answer at `path`."""
        return self._transport.run(sans_io.listing(path, name))

    def document(self, path: str) -> dict[str, Any]:
        """Fetch the JSON object at `path`."""
        return self._transport.run(sans_io.document(path))

    def readiness(self) -> dict[str, Any]:
        """Fetch /readyz, whether it answers 200 or 503."""
        return self._transport.run(sans_io.readiness())

    def image(self, path: str) -> bytes:
        """Fetch an image's bytes."""
        return self._transport.run(sans_io.image(path))
