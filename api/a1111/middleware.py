"""Middleware of the A1111 paths: trailing slashes, protection from cross-site requests, errors in A1111's shape.

Routes raise the farm's own errors, which become problem JSON as everywhere; the middleware rewrites any problem JSON.
"""

import json
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems
from shared.errors import Forbidden

PATHS = ("/sdapi/", "/internal/", "/agent-scheduler/")
PROBLEM = problems.ProblemResponse.media_type
# Statuses that the original leaves in FastAPI's own shape, on paths that it does not have.
_BARE = frozenset({"Not Found", "Method Not Allowed"})
# Names of the exceptions behind them; for all others HTTPException.
_RAISED = {"impossible": "RuntimeError", "out_of_memory": "OutOfMemoryError"}


class CrossOrigin(Forbidden):
    """Pages of this origin may not call the API; FARM_CORS_ORIGINS lists the origins that may."""

    code = "cross_origin"


class A1111Middleware:
    """ASGI middleware for all requests under `PATHS`. Pages of `origins` may call from the browser."""

    def __init__(self, app: ASGIApp, *, origins: frozenset[str] = frozenset()) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or not scope["path"].startswith(PATHS):
            await self._app(scope, receive, send)
            return
        path = scope["path"].rstrip("/")
        scope = {**scope, "path": path, "raw_path": path.encode()}
        rewriter = _ErrorRewriter(send, has_key="authorization" in Headers(scope=scope))
        if self._is_forged(scope):
            await problems.of(Request(scope), CrossOrigin())(scope, receive, rewriter.send)
            return
        try:
            await self._app(scope, receive, rewriter.send)
        except Exception as error:
            if rewriter.has_begun:
                raise
            await problems.unexpected(Request(scope), error)(scope, receive, rewriter.send)

    def _is_forged(self, scope: Scope) -> bool:
        """Whether a browser sends this for a page of another origin without a CORS preflight (CSRF)."""
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if scope["method"] != "POST" or origin is None or self._origins & {origin, "*"}:
            return False
        has_preflight = headers.get("content-type", "").startswith("application/json")
        return not has_preflight and origin.partition("://")[2] != headers.get("host")


class _ErrorRewriter:
    """Wraps `send`: passes responses through, and rewrites problem JSON."""

    def __init__(self, send: Send, *, has_key: bool) -> None:
        self._send = send
        self._has_key = has_key
        self._start: Message | None = None
        self._body = b""
        self.has_begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and not self.has_begun:
            self.has_begun = True
            if Headers(scope=message).get("content-type") == PROBLEM:
                self._start = message
                return
        if self._start is None:
            await self._send(message)
            return
        self._body += message.get("body", b"")
        if not message.get("more_body", False):
            await self._send_rewritten(self._start)

    async def _send_rewritten(self, start: Message) -> None:
        body = json.dumps(a1111_error(json.loads(self._body), has_key=self._has_key)).encode()
        headers = MutableHeaders(scope=start)
        headers["Content-Type"] = "application/json"
        headers["Content-Length"] = str(len(body))
        if start["status"] == 401:
            headers["WWW-Authenticate"] = 'Basic realm="farm"'
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})


def a1111_error(problem: Mapping[str, Any], *, has_key: bool = False) -> dict[str, Any]:
    """Return A1111's body for a problem: field errors, an unknown path, or an exception with its text."""
    detail = problem["detail"]
    if problem["errors"]:
        return {"detail": [_field(error) for error in problem["errors"]]}
    if detail in _BARE:
        return {"detail": detail}
    if problem["status"] == 401:
        detail = "Incorrect username or password" if has_key else "Not authenticated"
    raised = _RAISED.get(problem["code"], "HTTPException")
    # Clients look for the reason of a refusal in `detail`, for that of a failure in `errors`.
    return {
        "error": raised,
        "detail": "" if raised != "HTTPException" else detail,
        "body": "",
        "errors": detail if problem["status"] >= 500 else "",
    }


def _field(error: Mapping[str, str]) -> dict[str, Any]:
    path = error["field"].split(".")
    return {"loc": path if path == ["body"] else ["body", *path], "msg": error["message"], "type": "value_error"}
