"""Authentication middleware: refuses a request without a valid API key before its body is read."""

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api import callers, problems
from shared.errors import FarmError


class AuthMiddleware:
    """ASGI middleware that identifies the caller of every request under the guarded path prefixes."""

    def __init__(self, app: ASGIApp, *, guarded: tuple[str, ...]) -> None:
        self._app = app
        self._guarded = guarded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http" and scope["path"].startswith(self._guarded):
            request = Request(scope)
            try:
                # Kept for the handler's dependency, which asks the same.
                request.state.caller = await callers.identify(
                    request.app.state.desk, request.headers.get("Authorization"), scope["path"]
                )
            except FarmError as error:
                await problems.of(request, error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
