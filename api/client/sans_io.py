"""What a client says to the farm and how it reads the answers, without a connection: generators that a line carries out.

A talk yields a `Call` and is given its response, or thrown the `ClientError` of a call that failed; it yields a `Pause` to have
time pass. Only what is safe to repeat is repeated: reads, and submissions under an idempotency key.
"""

import math
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote, urlsplit
from uuid import UUID

import httpx

from api.client import problems
from api.client.problems import ClientError
from shared.vocabulary.states import JobState

TRIES = 3
MAX_RETRY_AFTER_S = 5.0
# The api holds a request for at most 60 s; a little less keeps proxies that cut at a minute out of it.
HOLD_S = 50.0
BATCH_POLL_S = 1.0
# How long a farm may be away before whoever waits for a job gives up.
PATIENCE_S = 60.0
FINAL_STATES = frozenset(str(state) for state in JobState if state.is_final)

JobBody: TypeAlias = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One HTTP request. `hold_s` is how long the farm may take beyond the usual before it answers."""

    method: str
    path: str
    json: Any = None
    content: bytes | None = None
    params: Mapping[str, Any] | None = None
    headers: Mapping[str, str] | None = None
    hold_s: float = 0.0
    follows: bool = False


@dataclass(frozen=True, slots=True)
class Pause:
    """Let so many seconds pass."""

    seconds: float


Exchange: TypeAlias = Generator[HttpRequest | Pause, httpx.Response, T]


def exchange(call: HttpRequest, *, tries: int = TRIES) -> Exchange[httpx.Response]:
    """Make a call, again after a moment while it fails in a way that may pass."""
    for attempt in range(1, tries):
        try:
            return _accepted((yield call))
        except ClientError as error:
            if not error.transient:
                raise
            yield Pause(min(error.retry_after_s or 0.2 * 2**attempt, MAX_RETRY_AFTER_S))
    return _accepted((yield call))


def submit(params: Mapping[str, Any], *, key: str | None = None, wait_s: float = 0.0) -> Exchange[JobBody]:
    """Submit a job. Under an idempotency key it is repeated like a read; without one, never: it might render twice."""
    headers = {"Idempotency-Key": key} if key else {}
    if wait_s:
        headers["Prefer"] = f"wait={math.ceil(wait_s)}"
    call = HttpRequest("POST", "/v1/jobs", json=dict(params), headers=headers, hold_s=wait_s)
    return _job((yield from exchange(call, tries=TRIES if key else 1)))


def job(job_id: str, *, tries: int = TRIES, wait_s: float = 0.0) -> Exchange[JobBody]:
    """Return a job as it is now, or once it is final if that is within `wait_s`."""
    params = {"wait": str(math.ceil(wait_s))} if wait_s else None  # the farm takes whole seconds
    return _job((yield from exchange(HttpRequest("GET", job_path(job_id), params=params, hold_s=wait_s), tries=tries)))


def finished(
    job_id: str, *, timeout_s: float | None = None, clock: Callable[[], float] = time.monotonic
) -> Exchange[JobBody]:
    """Return a job once it is final, however long that takes; a farm that blinks is waited for.

    Raises `ClientError` with code `still_running` after `timeout_s`.
    """
    deadline = clock() + timeout_s if timeout_s is not None else math.inf
    silent_since: float | None = None
    while True:
        try:
            found = yield from job(job_id, wait_s=max(0.0, min(HOLD_S, deadline - clock())))
        except ClientError as error:
            silent_since = silent_since or clock()
            if not error.transient or clock() >= min(deadline, silent_since + PATIENCE_S):
                raise
            yield Pause(1.0)
            continue
        silent_since = None
        if found["state"] in FINAL_STATES:
            return found
        if clock() >= deadline:
            raise ClientError("still_running", f"Job {job_id} is still {found['state']} after {timeout_s:g} s.")


def page(query: Mapping[str, Any]) -> Exchange[tuple[list[JobBody], str | None]]:
    """Return one page of jobs, newest first, and the cursor of the next."""
    body = _body((yield from exchange(HttpRequest("GET", "/v1/jobs", params=query))))
    return _listed(body, "jobs"), body.get("next_cursor")


def jobs(*, limit: int, **filters: str | None) -> Exchange[list[JobBody]]:
    """Return the newest jobs that pass the filters, at most `limit`, walking as many pages as it takes."""
    found: list[JobBody] = []
    query: dict[str, Any] = {name: value for name, value in filters.items() if value is not None}
    while True:
        query["limit"] = min(limit - len(found), 100)
        more, query["cursor"] = yield from page(query)
        found += more
        if len(found) >= limit or not query["cursor"]:
            return found[:limit]


def cancel(job_id: str) -> Exchange[JobBody]:
    """Ask for a job to stop. Asking twice is harmless, so this is repeated like a read."""
    return _job((yield from exchange(HttpRequest("POST", f"{job_path(job_id)}/cancel"))))


def retry(job_id: str) -> Exchange[JobBody]:
    """Have a dead job rendered once more. A repeated wish makes no second job, so this is repeated like a read."""
    return _job((yield from exchange(HttpRequest("POST", f"{job_path(job_id)}/retry"))))


def retry_many(wanted: Mapping[str, Any]) -> Exchange[dict[str, str]]:
    """Have dead jobs rendered once more; the new ids by the old. What a lost answer had retried is not retried again."""
    body = _body((yield from exchange(HttpRequest("POST", "/v1/jobs/retry", json=dict(wanted)))))
    return dict(body["jobs"])


def delete(job_id: str) -> Exchange[None]:
    """Delete a final job with its images."""
    yield from exchange(HttpRequest("DELETE", job_path(job_id)), tries=1)


def drain(worker_id: str, *, resume: bool = False) -> Exchange[None]:
    """Ask a worker to finish and leave, or to work again."""
    act = "resume" if resume else "drain"
    yield from exchange(HttpRequest("POST", f"/v1/workers/{quote(worker_id, safe='')}/{act}"))


def listing(path: str, name: str) -> Exchange[list[dict[str, Any]]]:
    """Return one of the API's lists."""
    return _listed(_body((yield from exchange(HttpRequest("GET", path)))), name)


def document(path: str) -> Exchange[dict[str, Any]]:
    """Return one of the API's single answers."""
    return _body((yield from exchange(HttpRequest("GET", path))))


def readiness() -> Exchange[dict[str, Any]]:
    """Return what /readyz says, whether ready or not."""
    return _body((yield HttpRequest("GET", "/readyz")))


def image(path: str) -> Exchange[bytes]:
    """Return an image's bytes, following the redirect to the storage, to which the API key does not travel."""
    if not path.startswith("/") or path.startswith("//"):
        raise ClientError("bad_response", f"The farm named an image outside itself: {path}")
    return (yield from exchange(HttpRequest("GET", path, follows=True))).content


def upload(data: bytes) -> Exchange[str]:
    """Bring a picture to the storage; its id then stands for it in jobs, for a day. Bringing it twice is harmless."""
    upload = _body((yield from exchange(HttpRequest("POST", "/v1/uploads", json={"size_bytes": len(data)}))))
    yield from exchange(HttpRequest("PUT", str(upload["upload_url"]), content=data))
    return checked_id(str(upload["id"]))


def submit_batch(wanted: Mapping[str, Any], *, key: str) -> Exchange[dict[str, Any]]:
    """Submit many jobs at once, under an idempotency key, so that this is repeated like a read."""
    call = HttpRequest("POST", "/v1/batches", json=dict(wanted), headers={"Idempotency-Key": key})
    return _body((yield from exchange(call)))


def finished_batch(
    batch_id: str, *, timeout_s: float | None = None, clock: Callable[[], float] = time.monotonic
) -> Exchange[dict[str, Any]]:
    """Return a batch once all its jobs have ended. Raises `ClientError` with code `still_running` after `timeout_s`."""
    deadline = clock() + timeout_s if timeout_s is not None else math.inf
    while True:
        found = yield from document(batch_path(batch_id))
        if found.get("state") == "finished":
            return found
        if clock() >= deadline:
            raise ClientError("still_running", f"Batch {batch_id} is unfinished after {timeout_s:g} s.")
        yield Pause(min(BATCH_POLL_S, max(0.0, deadline - clock())))


def cancel_batch(batch_id: str) -> Exchange[dict[str, Any]]:
    """Cancel what has not ended of a batch. Asking twice is harmless."""
    return _body((yield from exchange(HttpRequest("POST", f"{batch_path(batch_id)}/cancel"))))


def batch_jobs(batch_id: str) -> Exchange[list[JobBody]]:
    """Return the jobs of a batch in their order, walking as many pages as it takes."""
    found: list[JobBody] = []
    start: int | None = 0
    while start is not None:
        query = {"start": start, "limit": 200}
        body = _body((yield from exchange(HttpRequest("GET", f"{batch_path(batch_id)}/jobs", params=query))))
        found += _listed(body, "jobs")
        start = body.get("next_start")
    return found


def batch_path(batch_id: str) -> str:
    """Return the address of a batch, or refuse what is no id."""
    try:
        return f"/v1/batches/{UUID(batch_id)}"
    except ValueError:
        raise ClientError("batch_not_found", f"{batch_id!r} is not a batch id.") from None


def checked_url(url: str) -> str:
    """Return an http or https URL, or refuse."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0 and url.isprintable()
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL):
        good = False
    if not good:
        raise ClientError("bad_url", f"{url!r} is not a URL of a farm; one looks like http://127.0.0.1:8000")
    return url.rstrip("/")


def checked_key(key: str) -> str:
    """Return a key that fits into a header, or refuse without repeating it."""
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ClientError("bad_api_key", "The API key has characters that no key has.")
    return key


def checked_id(job_id: str) -> str:
    """Return a job id in its usual spelling, or refuse: it becomes part of URLs and file names."""
    try:
        return str(UUID(job_id))
    except ValueError:
        raise ClientError("job_not_found", f"{job_id!r} is not a job id.") from None


def job_path(job_id: str) -> str:
    """Return where a job is. Raises `ClientError` for what is no id."""
    return f"/v1/jobs/{checked_id(job_id)}"


def _accepted(response: httpx.Response) -> httpx.Response:
    problems.refuse(response)
    return response


def _body(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ClientError("bad_response", f"{response.request.url} did not answer as a render farm does.")
    return body


def _job(response: httpx.Response) -> JobBody:
    body = _body(response)
    if not isinstance(body.get("state"), str) or not isinstance(body.get("progress"), dict):
        raise ClientError("bad_response", f"{response.request.url} did not answer with a job.")
    body["id"] = checked_id(str(body.get("id")))
    return body


def _listed(body: dict[str, Any], name: str) -> list[dict[str, Any]]:
    listed = body.get(name)
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise ClientError("bad_response", f"The farm's answer has no list of {name}.")
    return listed
