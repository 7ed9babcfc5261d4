"""Sans-IO client: each function is a generator that yields HTTP requests and receives their responses.

`api.client.transport` runs the generators, blocking or on an event loop. A generator yields an `HttpRequest` and receives its
response, or the transport throws the `ClientError` of a failed request into it; a `Pause` asks the transport to sleep. Only
idempotent requests are retried: reads, cancels, and submissions under an idempotency key.
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
# How long a farm may be away before a wait for a job gives up.
PATIENCE_S = 60.0
FINAL_STATES = frozenset(str(state) for state in JobState if state.is_final)

JobBody: TypeAlias = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One HTTP request. `hold_s` is added to the read timeout: a long poll may hold its answer for so long."""

    method: str
    path: str
    json: Any = None
    content: bytes | None = None
    params: Mapping[str, Any] | None = None
    headers: Mapping[str, str] | None = None
    hold_s: float = 0.0
    follow_redirects: bool = False


@dataclass(frozen=True, slots=True)
class Pause:
    """Ask the transport to sleep."""

    seconds: float


Exchange: TypeAlias = Generator[HttpRequest | Pause, httpx.Response, T]


def send(request: HttpRequest, *, tries: int = TRIES) -> Exchange[httpx.Response]:
    """Send a request, up to `tries` times with exponential backoff while its error is transient. Raises `ClientError`."""
    for attempt in range(1, tries):
        try:
            return _checked((yield request))
        except ClientError as error:
            if not error.transient:
                raise
            yield Pause(min(error.retry_after_s or 0.2 * 2**attempt, MAX_RETRY_AFTER_S))
    return _checked((yield request))


def submit(params: Mapping[str, Any], *, key: str | None = None, wait_s: float = 0.0) -> Exchange[JobBody]:
    """Submit a job. Retried under an idempotency key only: without one, a repeated submission might render twice."""
    headers = {"Idempotency-Key": key} if key else {}
    if wait_s:
        headers["Prefer"] = f"wait={math.ceil(wait_s)}"
    request = HttpRequest("POST", "/v1/jobs", json=dict(params), headers=headers, hold_s=wait_s)
    return _job((yield from send(request, tries=TRIES if key else 1)))


def job(job_id: str, *, tries: int = TRIES, wait_s: float = 0.0) -> Exchange[JobBody]:
    """Fetch a job as it is now, or once it is final if that happens within `wait_s`."""
    params = {"wait": str(math.ceil(wait_s))} if wait_s else None  # the farm takes whole seconds
    return _job((yield from send(HttpRequest("GET", job_path(job_id), params=params, hold_s=wait_s), tries=tries)))


def finished(
    job_id: str, *, timeout_s: float | None = None, clock: Callable[[], float] = time.monotonic
) -> Exchange[JobBody]:
    """Poll a job until it is final. Outages shorter than `PATIENCE_S` are waited out.

    Raises `ClientError` with code `still_running` after `timeout_s`.
    """
    deadline = clock() + timeout_s if timeout_s is not None else math.inf
    silent_since: float | None = None
    while True:
        try:
            body = yield from job(job_id, wait_s=max(0.0, min(HOLD_S, deadline - clock())))
        except ClientError as error:
            silent_since = silent_since or clock()
            if not error.transient or clock() >= min(deadline, silent_since + PATIENCE_S):
                raise
            yield Pause(1.0)
            continue
        silent_since = None
        if body["state"] in FINAL_STATES:
            return body
        if clock() >= deadline:
            raise ClientError("still_running", f"Job {job_id} is still {body['state']} after {timeout_s:g} s.")


def page(query: Mapping[str, Any]) -> Exchange[tuple[list[JobBody], str | None]]:
    """Fetch one page of jobs, newest first, and the cursor of the next page."""
    body = _body((yield from send(HttpRequest("GET", "/v1/jobs", params=query))))
    return _listed(body, "jobs"), body.get("next_cursor")


def jobs(*, limit: int, **filters: str | None) -> Exchange[list[JobBody]]:
    """Fetch the newest jobs that match the filters, at most `limit`, over as many pages as needed."""
    collected: list[JobBody] = []
    query: dict[str, Any] = {name: value for name, value in filters.items() if value is not None}
    while True:
        query["limit"] = min(limit - len(collected), 100)
        more, query["cursor"] = yield from page(query)
        collected += more
        if len(collected) >= limit or not query["cursor"]:
            return collected[:limit]


def cancel(job_id: str) -> Exchange[JobBody]:
    """Cancel a job. Idempotent, so it is retried."""
    return _job((yield from send(HttpRequest("POST", f"{job_path(job_id)}/cancel"))))


def retry(job_id: str) -> Exchange[JobBody]:
    """Retry a failed, expired or canceled job. The api makes one new job however often it is asked, so this is retried."""
    return _job((yield from send(HttpRequest("POST", f"{job_path(job_id)}/retry"))))


def retry_many(filters: Mapping[str, Any]) -> Exchange[dict[str, str]]:
    """Retry failed and expired jobs; new ids by old ones. Jobs of a lost answer are not retried twice."""
    body = _body((yield from send(HttpRequest("POST", "/v1/jobs/retry", json=dict(filters)))))
    return dict(body["jobs"])


def delete(job_id: str) -> Exchange[None]:
    """Delete a final job with its images. Not retried: after a lost answer the repeat would find the job gone."""
    yield from send(HttpRequest("DELETE", job_path(job_id)), tries=1)


def drain(worker_id: str, *, resume: bool = False) -> Exchange[None]:
    """Drain a worker, or let it take jobs again."""
    verb = "resume" if resume else "drain"
    yield from send(HttpRequest("POST", f"/v1/workers/{quote(worker_id, safe='')}/{verb}"))


def listing(path: str, name: str) -> Exchange[list[dict[str, Any]]]:
    """Fetch the list `name` in the answer at `path`."""
    return _listed(_body((yield from send(HttpRequest("GET", path)))), name)


def document(path: str) -> Exchange[dict[str, Any]]:
    """Fetch the JSON object at `path`."""
    return _body((yield from send(HttpRequest("GET", path))))


def readiness() -> Exchange[dict[str, Any]]:
    """Fetch /readyz, whether it answers 200 or 503."""
    return _body((yield HttpRequest("GET", "/readyz")))


def image(path: str) -> Exchange[bytes]:
    """Fetch an image's bytes through the redirect to the storage, which does not receive the API key."""
    if not path.startswith("/") or path.startswith("//"):
        raise ClientError("bad_response", f"The farm named an image outside itself: {path}")
    return (yield from send(HttpRequest("GET", path, follow_redirects=True))).content


def input_picture(job_id: str, field: str) -> Exchange[bytes]:
    """Fetch a picture that a job started from."""
    return (yield from send(HttpRequest("GET", f"{job_path(job_id)}/inputs/{quote(field, safe='')}"))).content


def upload(data: bytes) -> Exchange[str]:
    """Upload a picture and return its id, which jobs may name for a day. Idempotent, so it is retried."""
    upload = _body((yield from send(HttpRequest("POST", "/v1/uploads", json={"size_bytes": len(data)}))))
    yield from send(HttpRequest("PUT", str(upload["upload_url"]), content=data))
    return checked_id(str(upload["id"]))


def submit_batch(batch: Mapping[str, Any], *, key: str) -> Exchange[dict[str, Any]]:
    """Submit many jobs at once, under an idempotency key, so that it is retried."""
    request = HttpRequest("POST", "/v1/batches", json=dict(batch), headers={"Idempotency-Key": key})
    return _body((yield from send(request)))


def finished_batch(
    batch_id: str, *, timeout_s: float | None = None, clock: Callable[[], float] = time.monotonic
) -> Exchange[dict[str, Any]]:
    """Poll a batch until all its jobs are final. Raises `ClientError` with code `still_running` after `timeout_s`."""
    deadline = clock() + timeout_s if timeout_s is not None else math.inf
    while True:
        body = yield from document(batch_path(batch_id))
        if body.get("state") == "finished":
            return body
        if clock() >= deadline:
            raise ClientError("still_running", f"Batch {batch_id} is unfinished after {timeout_s:g} s.")
        yield Pause(min(BATCH_POLL_S, max(0.0, deadline - clock())))


def cancel_batch(batch_id: str) -> Exchange[dict[str, Any]]:
    """Cancel the unfinished jobs of a batch. Idempotent."""
    return _body((yield from send(HttpRequest("POST", f"{batch_path(batch_id)}/cancel"))))


def batch_jobs(batch_id: str) -> Exchange[list[JobBody]]:
    """Fetch the jobs of a batch in order, over as many pages as needed."""
    collected: list[JobBody] = []
    start: int | None = 0
    while start is not None:
        query = {"start": start, "limit": 200}
        body = _body((yield from send(HttpRequest("GET", f"{batch_path(batch_id)}/jobs", params=query))))
        collected += _listed(body, "jobs")
        start = body.get("next_start")
    return collected


def batch_path(batch_id: str) -> str:
    """Return the URL path of a batch. Raises `ClientError` for a malformed id."""
    try:
        return f"/v1/batches/{UUID(batch_id)}"
    except ValueError:
        raise ClientError("batch_not_found", f"{batch_id!r} is not a batch id.") from None


def checked_url(url: str) -> str:
    """Return the base URL of a farm without a trailing slash. Raises `ClientError` unless it is http or https."""
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0 and url.isprintable()
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL):
        is_valid = False
    if not is_valid:
        raise ClientError("bad_url", f"{url!r} is not a URL of a farm; one looks like http://127.0.0.1:8000")
    return url.rstrip("/")


def checked_key(key: str) -> str:
    """Return an API key that fits into a header. Raises `ClientError`, which does not repeat the key."""
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ClientError("bad_api_key", "The API key has characters that no key has.")
    return key


def checked_id(job_id: str) -> str:
    """Return a UUID in canonical form, because it becomes part of URLs and file names. Raises `ClientError`."""
    try:
        return str(UUID(job_id))
    except ValueError:
        raise ClientError("job_not_found", f"{job_id!r} is not a job id.") from None


def job_path(job_id: str) -> str:
    """Return the URL path of a job. Raises `ClientError` for a malformed id."""
    return f"/v1/jobs/{checked_id(job_id)}"


def _checked(response: httpx.Response) -> httpx.Response:
    problems.raise_for_problem(response)
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
