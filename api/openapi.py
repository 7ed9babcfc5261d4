"""The OpenAPI document: what FastAPI makes of the routes, and the problems that any of them may answer, each told once."""

import http
import re
from threading import Lock
from typing import Any, TypeAlias

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from api.desk import Desk
from api.limits.owners import NOBODY
from api.problems import FieldError, ProblemDetails, problem_of

# Statuses of authentication and rate limits, and of a body that is missing, slow, large, or encoded in an unknown way.
GATE = (401, 403, 429, 503)
BODY = (400, 408, 413, 415, 422)
# What an answer of each status may say.
EXAMPLES = {
    400: ("malformed_body", "The body is not valid JSON: Expecting value."),
    401: ("unauthenticated", "This farm needs an API key: send it as Authorization: Bearer KEY."),
    403: ("scope_missing", "This API key lacks the scope 'submit'."),
    404: ("job_not_found", "There is no job 01920000-0000-7000-8000-000000000000."),
    408: ("body_too_slow", "The request body arrives too slowly."),
    409: ("job_already_final", "Job 01920000-0000-7000-8000-000000000000 is succeeded already."),
    410: ("gone", "Job 01920000-0000-7000-8000-000000000000 was deleted."),
    413: ("body_too_large", "The body is larger than the limit of 33554432 bytes."),
    415: ("unsupported_encoding", "Send the body uncompressed, without Content-Encoding."),
    422: ("invalid_request", "steps: Input should be less than or equal to 150"),
    429: ("rate_limited", "This API key may make 60 requests a minute."),
    500: ("internal", "The api failed unexpectedly; its log has the details."),
    502: ("fetch_failed", "The picture could not be fetched."),
    503: ("database_unavailable", "The database does not answer; nothing was changed. Try again soon."),
}
ARTICLES = {"a", "an", "the", "your"}
Document: TypeAlias = dict[str, Any]


def documented(*statuses: int) -> dict[int | str, Document]:
    """Return the OpenAPI responses for the problems of a route."""
    return {status: {"$ref": f"#/components/responses/{_name(status)}"} for status in statuses}


def operation_id(route: APIRoute) -> str:
    """Return a route's stable name, by which generated clients call it: its summary, as `submitJob` for "Submit a job"."""
    words = re.findall(r"\w+", (route.summary or route.name).replace("'s", ""))
    return camel_case(*(word for word in words if word not in ARTICLES))


def camel_case(first: str, *others: str) -> str:
    """Join words as JavaScript writes names."""
    return first.lower() + "".join(word[:1].upper() + word[1:] for word in others)


def install(app: FastAPI) -> None:
    """Let `app.openapi` return the whole document."""
    plain = app.openapi

    def whole() -> Document:
        if app.openapi_schema is None:
            _complete(plain())
        return plain()

    app.openapi = whole  # type: ignore[method-assign]  # the way that FastAPI's documentation shows
    _build_beside_the_loop(app)


def _build_beside_the_loop(app: FastAPI) -> None:
    """Have the OpenAPI document built in a thread before it is first served: it takes a second."""
    building = Lock()

    def build() -> None:
        with building:
            app.openapi()

    (route,) = (one for one in app.routes if isinstance(one, Route) and one.path == app.openapi_url)
    serve = route.app

    async def described(scope: Scope, receive: Receive, send: Send) -> None:
        desk: Desk = scope["app"].state.desk
        await desk.rooms.probes.run(NOBODY, build)
        await serve(scope, receive, send)

    route.app = described


def _complete(document: Document) -> None:
    for path, item in document["paths"].items():
        for operation in item.values():
            if path.startswith("/v1/"):
                _add_problems_of_middleware(operation)
            _tidy(operation["responses"])
    components = document["components"]
    components["schemas"] |= _schemas()
    components["responses"] = {_name(status): _response(status) for status in EXAMPLES}


def _add_problems_of_middleware(operation: Document) -> None:
    statuses = (*GATE, *BODY) if "requestBody" in operation else GATE
    for status, response in documented(*statuses).items():
        operation["responses"].setdefault(str(status), response)


def _tidy(responses: Document) -> None:
    """Leave a reference alone, where FastAPI puts a description beside it; say what files and event streams are in 3.1."""
    for status, response in responses.items():
        if "$ref" in response:
            responses[status] = {"$ref": response["$ref"]}
        for media_type, content in response.get("content", {}).items():
            if content.pop("itemSchema", None):
                content["schema"] = {"type": "string"}
            elif not content and not media_type.endswith("json"):
                content["schema"] = {"type": "string", "format": "binary"}


def _schemas() -> Document:
    template = "#/components/schemas/{model}"
    problem = ProblemDetails.model_json_schema(ref_template=template)
    return {FieldError.__name__: problem.pop("$defs")[FieldError.__name__], ProblemDetails.__name__: problem}


def _response(status: int) -> Document:
    code, detail = EXAMPLES[status]
    field, _, message = detail.partition(": ")
    errors = [FieldError(field=field, message=message)] if status == http.HTTPStatus.UNPROCESSABLE_ENTITY else []
    example = problem_of(status, code, detail, errors=errors).model_dump()
    content = {"schema": {"$ref": "#/components/schemas/ProblemDetails"}, "example": example}
    return {"description": http.HTTPStatus(status).phrase, "content": {"application/problem+json": content}}


def _name(status: int) -> str:
    return f"Problem{status}"  # phrases change with Python's versions
