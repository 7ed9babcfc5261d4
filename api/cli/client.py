"""The command line's view of the farm: the client's talks, with jobs as the farm sends them, whatever its version."""

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
    """Which farm to talk to, and as whom."""

    url: str
    api_key: str | None

    def connect(self) -> "FarmClient":
        """Return a client; nothing is sent yet."""
        return FarmClient(self.url, self.api_key)


class FarmClient:
    """Speaks to one farm. Use as a context manager; every call has a timeout."""

    def __init__(
        self, base_url: str, api_key: str | None = None, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._line = HttpTransport(base_url, api_key, sleep=sleep)

    def __enter__(self) -> "FarmClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._line.http.close()

    def submit(self, params: Mapping[str, Any]) -> JobBody:
        """Submit a job, under a key of its own so that repeating it is safe."""
        return self._line.carry(sans_io.submit(params, key=str(uuid.uuid4())))

    def job(self, job_id: JobId, *, tries: int = TRIES) -> JobBody:
        """Return a job as it is now."""
        return self._line.carry(sans_io.job(job_id, tries=tries))

    def jobs(self, *, limit: int, **filters: str | None) -> list[JobBody]:
        """Return the newest jobs that pass the filters, at most `limit`."""
        return self._line.carry(sans_io.jobs(limit=limit, **filters))

    def cancel(self, job_id: JobId) -> JobBody:
        """Ask for a job to stop."""
        return self._line.carry(sans_io.cancel(job_id))

    def retry(self, job_id: JobId) -> JobBody:
        """Have a dead job rendered once more, as the new job that this returns."""
        return self._line.carry(sans_io.retry(job_id))

    def retry_many(self, **wanted: Any) -> dict[str, str]:
        """Have dead jobs rendered once more; the new ids by the old."""
        return self._line.carry(sans_io.retry_many(wanted))

    def delete(self, job_id: JobId) -> None:
        """Delete a final job with its images."""
        self._line.carry(sans_io.delete(job_id))

    def submit_batch(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Submit many jobs at once, under a key of its own so that repeating it is safe."""
        return self._line.carry(sans_io.submit_batch(wanted, key=str(uuid.uuid4())))

    def batch(self, batch_id: str) -> dict[str, Any]:
        """Return a batch as it is now."""
        return self._line.carry(sans_io.document(sans_io.batch_path(batch_id)))

    def batch_jobs(self, batch_id: str) -> list[JobBody]:
        """Return the jobs of a batch, in its order."""
        return self._line.carry(sans_io.batch_jobs(batch_id))

    def cancel_batch(self, batch_id: str) -> None:
        """Cancel what has not ended of a batch."""
        self._line.carry(sans_io.cancel_batch(batch_id))

    def sheet(self, batch_id: str) -> bytes:
        """Return the contact sheet of a batch."""
        return self._line.carry(sans_io.image(f"{sans_io.batch_path(batch_id)}/sheet"))

    def drain(self, worker_id: str, *, resume: bool = False) -> None:
        """Ask a worker to finish and leave, or to work again. Asking twice is harmless."""
        self._line.carry(sans_io.drain(worker_id, resume=resume))

    def checkpoints(self) -> list[dict[str, Any]]:
        """Return the checkpoints that jobs may name."""
        return self._line.carry(sans_io.listing("/v1/checkpoints", "checkpoints"))

    def listing(self, path: str, name: str) -> list[dict[str, Any]]:
        """Return one of the API's lists."""
        return self._line.carry(sans_io.listing(path, name))

    def document(self, path: str) -> dict[str, Any]:
        """Return one of the API's single answers."""
        return self._line.carry(sans_io.document(path))

    def readiness(self) -> dict[str, Any]:
        """Return what /readyz says, whether ready or not."""
        return self._line.carry(sans_io.readiness())

    def image(self, path: str) -> bytes:
        """Return an image's bytes."""
        return self._line.carry(sans_io.image(path))
