"""Middleware for HEAD wherever GET is answered, for OPTIONS, and for all methods of a path in `Allow` (RFC 9110)."""

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ASKED = ("GET", "POST", "PUT", "PATCH", "DELETE")
_BODILESS = frozenset({204, 304})


class Heads:
    """ASGI middleware that asks for HEAD as GET does, and passes on the head alone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection. What would be made as it is sent, such as a stream of events, is not begun."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})["is_head"] = True
        asked = {**scope, "method": "GET"}

        async def head(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["route"] = asked.get("route")
                await send(message)
                if message["status"] not in _BODILESS and "content-length" not in Headers(scope=message):
                    await send(_END)
                    going.cancel()
            elif not message.get("more_body", False):
                await send(_END)

        with anyio.CancelScope() as going:
            await self._app(asked, receive, head)


class Allow:
    """ASGI middleware that answers OPTIONS, and completes the answer to a method that a path does not have."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "OPTIONS" and (found := allowed(scope)):
            await Response(status_code=204, headers={"Allow": found})(scope, receive, send)
            return
        asked = dict(scope)  # as it is before a route is found

        async def completed(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 405:
                MutableHeaders(scope=message)["Allow"] = allowed(asked)
            await send(message)

        await self._app(scope, receive, completed)


def is_head(scope: Scope) -> bool:
    """Whether the client has asked for HEAD: an address that it is sent to must take the same method."""
    return bool(scope.get("state", {}).get("is_head"))


def allowed(scope: Scope) -> str:
    """Return the methods of the path that is asked for, as in `Allow`; nothing for a path that does not exist."""
    found = [method for method in ASKED if _is_answered({**scope, "method": method})]
    if not found:
        return ""
    return ", ".join([*found, *(["HEAD"] if "GET" in found else []), "OPTIONS"])


def _is_answered(scope: Scope) -> bool:
    """Whether a route takes the method; folders of files are only read."""
    return any(
        route.matches(scope)[0] is Match.FULL and (not isinstance(route, Mount) or scope["method"] == "GET")
        for route in scope["app"].routes
    )


_END: Message = {"type": "http.response.body", "body": b""}
