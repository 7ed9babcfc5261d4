"""The border of the dialect: trailing slashes, pages of other origins, and every error in the shape that its clients know.

Inside, errors are the farm's own and become problems as everywhere; here, whatever layer they come from, problems are reworded.
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
    """A page of another origin may not do this; FARM_CORS_ORIGINS lists those that may."""

    code = "cross_origin"


class Dialect:
    """ASGI middleware around everything that answers under the dialect's paths. `origins` may call from the browser."""

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
        reworded = _Reworded(send, has_key="authorization" in Headers(scope=scope))
        if self._is_forged(scope):
            await problems.of(Request(scope), CrossOrigin())(scope, receive, reworded.send)
            return
        try:
            await self._app(scope, receive, reworded.send)
        except Exception as error:
            if reworded.has_begun:
                raise
            await problems.unexpected(Request(scope), error)(scope, receive, reworded.send)

    def _is_forged(self, scope: Scope) -> bool:
        """Say whether a browser sends this for a page of another origin without having asked whether it may."""
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if scope["method"] != "POST" or origin is None or self._origins & {origin, "*"}:
            return False
        is_asked_for = headers.get("content-type", "").startswith("application/json")
        return not is_asked_for and origin.partition("://")[2] != headers.get("host")


class _Reworded:
    """Sends an answer, and a problem in the dialect's words."""

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
            await self._answer(self._start)

    async def _answer(self, start: Message) -> None:
        body = json.dumps(reworded(json.loads(self._body), has_key=self._has_key)).encode()
        headers = MutableHeaders(scope=start)
        headers["Content-Type"] = "application/json"
        headers["Content-Length"] = str(len(body))
        if start["status"] == 401:
            headers["WWW-Authenticate"] = 'Basic realm="farm"'
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})


def reworded(problem: Mapping[str, Any], *, has_key: bool = False) -> dict[str, Any]:
    """Say a problem as the original says it: what is wrong with fields, an unknown path, or an exception with its text."""
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
