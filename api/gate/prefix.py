"""Middleware that answers under the path prefix by which the client sees the API: in `Location`, in links, in the documentation.

Innermost: routes, the documentation's pages and static files read `root_path`, all other middleware sees paths without it.
"""

from starlette.datastructures import URL, MutableHeaders
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.gate.proxies import prefix
from shared.jobs import wire


class Prefix:
    """ASGI middleware for all requests."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        root = prefix(scope)
        if not scope["path"]:  # the prefix alone: the page's relative addresses need the slash
            await RedirectResponse(f"{root}/")(scope, receive, send)
            return

        async def moved(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if location := headers.get("location"):
                    headers["location"] = _moved(location, root, scope)
            await send(message)

        scope["root_path"] = root
        scope["path"] = root + scope["path"]
        scope["raw_path"] = root.encode() + scope.get("raw_path", b"")
        wire.PREFIX.set(root)  # of this request's task and its threads
        await self._app(scope, receive, moved)


def _moved(location: str, root: str, scope: Scope) -> str:
    """Return a `Location` of this API as the client must write it: a path, since a proxy may hide scheme, name and port."""
    if location.startswith("/") and not location.startswith("//"):
        return root + location
    asked = URL(scope=scope)
    slashed = asked.path.rstrip("/") if asked.path.endswith("/") else f"{asked.path}/"
    if location == str(asked.replace(path=slashed)):
        return location.removeprefix(f"{asked.scheme}://{asked.netloc}")
    return location
