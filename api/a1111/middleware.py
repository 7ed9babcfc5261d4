"""Middleware of the A1111 paths: trailing slashes, errors in A1111's shape.

Routes raise the farm's own errors, which become problem JSON as everywhere; the middleware rewrites any problem JSON.
"""

import json
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems

PATHS = ("/sdapi/", "/internal/", "/agent-scheduler/")
PROBLEM = problems.ProblemResponse.media_type
# Statuses that the original leaves in FastAPI's own shape, on paths that it does not have.
_BARE = frozenset({"Not Found", "Method Not Allowed"})
# Names of the exceptions behind them; for all others HTTPException.
_RAISED = {"impossible": "RuntimeError", "out_of_memory": "OutOfMemoryError"}


class A1111Middleware:
    """ASGI middleware for all requests under `PATHS`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or not scope["path"].startswith(PATHS):
            await self._app(scope, receive, send)
            return
        scope["path"] = scope["path"].rstrip("/")
        scope["raw_path"] = scope["path"].encode()
        rewriter = _ErrorRewriter(send, has_key="authorization" in Headers(scope=scope))
        try:
            await self._app(scope, receive, rewriter.send)
        except Exception as error:
            if rewriter.has_begun:
                raise
            await problems.unexpected(Request(scope), error)(scope, receive, rewriter.send)


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
