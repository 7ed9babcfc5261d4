"""One exception for every failed request: the API's problem details, or a transport error."""

import httpx
from pydantic import ValidationError

# A message is read by a person, whatever answered: a farm of an older release names every fault.
MAX_FAULTS, MAX_FAULT_CHARS, MAX_DETAIL_CHARS = 20, 500, 2500


class ClientError(Exception):
    """The farm refused a request, or did not answer. `transient`: the same request may succeed later.

    `status` is the HTTP status of the refusal, None without an answer.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        status: int | None = None,
        transient: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{detail} [{code}]")
        self.code = code
        self.detail = detail
        self.status = status
        self.transient = transient
        self.retry_after_s = retry_after_s


def of_transport(error: httpx.RequestError, url: str) -> ClientError:
    """Build the error of a request without an answer."""
    if isinstance(error, httpx.TimeoutException):
        return ClientError("timeout", f"The farm at {url} does not answer.", transient=True)
    if isinstance(error, httpx.TransportError):
        detail = f"Cannot reach the farm at {url} ({error}). `farm up` starts one here; --url names another."
        return ClientError("unreachable", detail, transient=True)
    return ClientError("bad_response", f"The farm at {url} sent a malformed answer: {error}")


def of_response(response: httpx.Response) -> ClientError:
    """Build the error of a refused request. The response body must have been read."""
    status = response.status_code
    code, detail = _problem(response)
    wait = response.headers.get("Retry-After", "")
    return ClientError(
        code,
        detail,
        status=status,
        transient=status in {429, 502, 503, 504} or code == "submission_in_flight",
        retry_after_s=float(wait) if wait.isdecimal() else None,
    )


def raise_for_problem(response: httpx.Response) -> None:
    """Raise `ClientError` unless the status is 2xx. The response body must have been read."""
    if not response.is_success:
        raise of_response(response)


def unreadable(error: ValidationError, word: str) -> ClientError:
    """Build the error of an answer that does not match this client's schema."""
    where = ".".join(str(part) for part in error.errors()[0]["loc"])
    return ClientError("bad_response", f"This client cannot read the {word}'s {where}; is it older than the farm?")


def _problem(response: httpx.Response) -> tuple[str, str]:
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        return f"http_{response.status_code}", f"{response.request.url} answered {response.status_code}."
    detail = str(body.get("detail") or body.get("title") or response.reason_phrase)[:MAX_DETAIL_CHARS]
    errors = [error for error in (body.get("errors") or [])[:MAX_FAULTS] if isinstance(error, dict)]
    fields = [f"{error.get('field')}: {error.get('message')}"[:MAX_FAULT_CHARS] for error in errors]
    code = str(body.get("code") or f"http_{response.status_code}")
    return code, "; ".join([detail, *(field for field in fields if field not in detail)])
