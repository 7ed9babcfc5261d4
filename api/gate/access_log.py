"""Middleware that logs every request (`FARM_ACCESS_LOG`), never its query string: clients write prompts and keys there."""

import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = structlog.get_logger(__name__)


class AccessLog:
    """ASGI middleware that logs each answer when its head is sent."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, path, client = time.perf_counter(), scope["path"], (scope.get("client") or (None,))[0]

        async def logged(message: Message) -> None:
            if message["type"] == "http.response.start":
                log.info(
                    "request.answered",
                    method=scope["method"],
                    path=path,
                    status=message["status"],
                    seconds=round(time.perf_counter() - began, 3),
                    client=client,
                )
            await send(message)

        await self._app(scope, receive, logged)
