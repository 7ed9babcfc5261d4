"""A client of the /v1 API over HTTP. Whatever goes wrong becomes a `ClientError` with the API's own code and words.

Only what is safe to repeat is repeated: reads, and any call that never reached the farm.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import urlsplit
from uuid import UUID

import httpx

from api.cli.console import Failure, printable

DEFAULT_URL = "http://127.0.0.1:8000"
READ_TRIES = 3
MAX_RETRY_AFTER_S = 5.0
_TIMEOUT = httpx.Timeout(30.0, connect=5.0)
# A proxy meant for the outside world cannot reach this machine's loopback.
_NEVER_PROXIED = {"all://127.0.0.1": None, "all://localhost": None, "all://[::1]": None}

JobBody: TypeAlias = dict[str, Any]
JobId: TypeAlias = str


class ClientError(Failure):
    """The farm refused, or could not be asked. `transient`: the same call may work in a moment."""

    def __init__(self, code: str, detail: str, *, transient: bool = False, retry_after_s: float | None = None) -> None:
        super().__init__(f"{printable(detail)} [{printable(code)}]")
        self.code = code
        self.detail = detail
        self.transient = transient
        self.retry_after_s = retry_after_s


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
        self._url = checked_url(base_url)
        self._sleep = sleep
        self._http = httpx.Client(
            base_url=self._url,
            headers={"Authorization": f"Bearer {checked_key(api_key)}"} if api_key else {},
            timeout=_TIMEOUT,
            mounts=_NEVER_PROXIED,
            follow_redirects=False,
        )

    def __enter__(self) -> "FarmClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def submit(self, params: Mapping[str, Any]) -> JobBody:
        """Submit a job. Not repeated once the farm may have seen it, for it would then render twice."""
        return _job(self._send("POST", "/v1/jobs", tries=1, json=dict(params)))

    def job(self, job_id: JobId, *, tries: int = READ_TRIES) -> JobBody:
        """Return a job as it is now."""
        return _job(self._send("GET", f"/v1/jobs/{checked_id(job_id)}", tries=tries))

    def jobs(self, *, limit: int, **filters: str | None) -> list[JobBody]:
        """Return the newest jobs that pass the filters, at most `limit`, walking as many pages as it takes."""
        found: list[JobBody] = []
        query: dict[str, Any] = {name: value for name, value in filters.items() if value is not None}
        while True:
            query["limit"] = min(limit - len(found), 100)
            body = _body(self._send("GET", "/v1/jobs", params=query))
            found += _listed(body, "jobs")
            query["cursor"] = body.get("next_cursor")
            if len(found) >= limit or not query["cursor"]:
                return found[:limit]

    def cancel(self, job_id: JobId) -> JobBody:
        """Ask for a job to stop. Asking twice is harmless, so this is repeated like a read."""
        return _job(self._send("POST", f"/v1/jobs/{checked_id(job_id)}/cancel"))

    def checkpoints(self) -> list[dict[str, Any]]:
        """Return the checkpoints that jobs may name."""
        return _listed(_body(self._send("GET", "/v1/checkpoints")), "checkpoints")

    def readiness(self) -> dict[str, Any]:
        """Return what /readyz says, whether ready or not."""
        response = self._exchange("GET", "/readyz")
        return _body(response)

    def image(self, path: str) -> bytes:
        """Return an image's bytes, following the redirect to the storage without taking the API key there."""
        if not path.startswith("/") or path.startswith("//"):
            raise ClientError("bad_response", f"The farm named an image outside itself: {path}")
        return self._send("GET", path, follow_redirects=True).content

    def _send(self, method: str, path: str, *, tries: int = READ_TRIES, **arguments: Any) -> httpx.Response:
        for attempt in range(1, tries):
            try:
                return _accepted(self._exchange(method, path, **arguments))
            except ClientError as error:
                if not error.transient:
                    raise
                self._sleep(min(error.retry_after_s or 0.2 * 2**attempt, MAX_RETRY_AFTER_S))
        return _accepted(self._exchange(method, path, **arguments))

    def _exchange(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **arguments)
        except httpx.TimeoutException as error:
            raise ClientError("timeout", f"The farm at {self._url} does not answer.", transient=True) from error
        except httpx.TransportError as error:
            detail = f"Cannot reach the farm at {self._url} ({error}). `farm up` starts one here; --url names another."
            raise ClientError("unreachable", detail, transient=True) from error
        except httpx.RequestError as error:
            raise ClientError("bad_response", f"The farm at {self._url} answered nonsense: {error}") from error


def checked_url(url: str) -> str:
    """Return an http or https URL, or refuse."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0 and printable(url) == url
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL):
        good = False
    if not good:
        raise ClientError("bad_url", f"{url!r} is not a URL of a farm; one looks like {DEFAULT_URL}")
    return url.rstrip("/")


def checked_key(key: str) -> str:
    """Return a key that fits into a header, or refuse without repeating it."""
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ClientError("bad_api_key", "The API key has characters that no key has.")
    return key


def checked_id(job_id: str) -> JobId:
    """Return a job id in its usual spelling, or refuse: it becomes part of URLs and file names."""
    try:
        return str(UUID(job_id))
    except ValueError:
        raise ClientError("job_not_found", f"{job_id!r} is not a job id.") from None


def _accepted(response: httpx.Response) -> httpx.Response:
    if response.is_success:
        return response
    transient = response.status_code in {502, 503, 504}
    code, detail = _problem(response)
    raise ClientError(code, detail, transient=transient, retry_after_s=_retry_after(response))


def _problem(response: httpx.Response) -> tuple[str, str]:
    try:
        body = _body(response)
    except ClientError:
        return f"http_{response.status_code}", f"{response.request.url} answered {response.status_code}."
    detail = str(body.get("detail") or body.get("title") or response.reason_phrase)
    errors = [error for error in body.get("errors") or [] if isinstance(error, dict)]
    fields = [f"{error.get('field')}: {error.get('message')}" for error in errors]
    code = str(body.get("code") or f"http_{response.status_code}")
    return code, "; ".join([detail, *(field for field in fields if field not in detail)])


def _retry_after(response: httpx.Response) -> float | None:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else None


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
