"""Error handlers: every error becomes RFC 9457 problem JSON with a stable `code`."""

import http
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from shared.errors import (
    BrokerUnavailable,
    DatabaseUnavailable,
    FarmError,
    StorageUnavailable,
    SubmissionInFlight,
    TooMany,
    Unauthenticated,
    Unavailable,
)

RETRY_AFTER_SECONDS = 5
# Together they keep a problem below 64 KiB, whatever is wrong and however often.
MAX_FAULTS = 20
MAX_PATH_CHARS, MAX_MESSAGE_CHARS, MAX_DETAIL_CHARS = 100, 400, 2500
# Failures that an operator must fix; anything else unavailable is so by design.
AWAY = (DatabaseUnavailable, BrokerUnavailable, StorageUnavailable)
_CODES = {
    400: "malformed_body",
    401: "unauthenticated",
    404: "not_found",
    405: "method_not_allowed",
    408: "body_too_slow",
    413: "body_too_large",
    415: "unsupported_media_type",
    503: "too_busy",
}

log = structlog.get_logger(__name__)


class FieldError(BaseModel):
    """A field of the request and its error."""

    field: Annotated[str, Field(description="Path of the field, such as `hires.strength`; `body` for the whole body.")]
    message: str


class ProblemDetails(BaseModel):
    """An error. Programs should read `code`, which is stable; `detail` is for people."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldError] = []


class ProblemResponse(JSONResponse):
    """A response whose body is problem JSON."""

    media_type = "application/problem+json"


def install(app: FastAPI) -> None:
    """Register the error handlers."""
    app.add_exception_handler(FarmError, _farm_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _nobody)
    app.add_exception_handler(Exception, unexpected)


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    errors: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
) -> ProblemResponse:
    """Build a problem response."""
    details = problem_of(status, code, _shortened(detail, MAX_DETAIL_CHARS), errors=errors)
    return ProblemResponse(details.model_dump(), status_code=status, headers=dict(headers or {}))


def problem_of(status: int, code: str, detail: str, *, errors: Sequence[FieldError] = ()) -> ProblemDetails:
    """Build a problem document."""
    phrase = http.HTTPStatus(status).phrase
    return ProblemDetails(title=phrase, status=status, detail=detail, code=code, errors=list(errors))


def of(_request: Request, error: FarmError) -> ProblemResponse:
    """Build the problem response of a `FarmError`."""
    return problem(error.status, error.code, str(error), headers=_headers(error))


def unexpected(request: Request, error: Exception) -> ProblemResponse:
    """Log an unexpected error and build a 500 response."""
    log.error("request.crashed", method=request.method, path=request.url.path, exc_info=error)
    return problem(500, "internal", "The api failed unexpectedly; its log has the details.")


def _farm_error(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, FarmError)  # noqa: S101 - registered for this class
    if isinstance(error, AWAY):
        log.warning("request.unserved", path=request.url.path, **error.log_fields)
    return of(request, error)


def _headers(error: FarmError) -> dict[str, str]:
    if isinstance(error, Unauthenticated):
        # Not Basic: in front of the console a browser would open a window of its own.
        return {"WWW-Authenticate": 'Bearer realm="farm"'}
    if isinstance(error, (Unavailable, TooMany, SubmissionInFlight)):
        return {"Retry-After": str(math.ceil(error.retry_after_s or RETRY_AFTER_SECONDS))}
    return {}


def _invalid_request(_request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this class
    faults = error.errors()
    errors = [_field_error(found) for found in faults[:MAX_FAULTS]]
    if any(found["type"] == "json_invalid" for found in faults):
        return problem(400, "malformed_body", f"The body is not valid JSON: {errors[0].message}.")
    return problem(422, "invalid_request", _told(errors, len(faults)), errors=errors)


def _told(errors: Sequence[FieldError], count: int) -> str:
    """Name faults in one line: as many of them as it holds, and how many more there are."""
    told: list[str] = []
    room = MAX_DETAIL_CHARS - MAX_MESSAGE_CHARS  # for the last one, and the rest's number
    for found in errors:
        if room > 0:
            told.append(f"{found.field}: {found.message}")
            room -= len(told[-1])
    return "; ".join(told) + (f"; and {count - len(told):,} more" if count > len(told) else "")


def _field_error(found: Mapping[str, Any]) -> FieldError:
    # The input itself is never echoed: it may be huge, or not even JSON (NaN).
    path = [str(part) for part in found["loc"] if part not in {"body", "query", "path"}]
    message = str(found["msg"]).removeprefix("Value error, ")
    if found["type"] == "json_invalid":
        message = str(found.get("ctx", {}).get("error", message))
    return FieldError(
        field=_shortened(".".join(path), MAX_PATH_CHARS) or "body", message=_shortened(message, MAX_MESSAGE_CHARS)
    )


def _shortened(text: str, most: int) -> str:
    """Return text on one line and of so many characters at most: what clients write becomes part of it."""
    line = "".join(character if character.isprintable() else " " for character in text[: most + 1])
    return line if len(line) <= most else f"{line[: most - 1]}…"


async def _nobody(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; as in logs of reverse proxies


def _http_error(_request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this class
    code = _CODES.get(error.status_code, http.HTTPStatus(error.status_code).name.lower())
    return problem(error.status_code, code, str(error.detail), headers=error.headers)
