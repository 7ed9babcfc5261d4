"""Middleware that believes `X-Forwarded-*` headers where a trusted proxy has sent them, and nobody else.

`For` and `Proto` become the client and the scheme of the request. `Host` is kept beside the request's own, so that neither
hides the other. `Prefix` is the path that the proxy has taken off. One that it left, `FARM_ROOT_PATH`, is taken off here, so that
everything inside sees the same paths.
"""

import re
from functools import lru_cache
from ipaddress import ip_address, ip_network

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from shared.settings import PREFIX, Settings, words

ANYONE = "*"


class Proxies:
    """ASGI middleware for all requests, outside of all others."""

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self._root_path = settings.root_path
        trusted = words(settings.trusted_proxies)
        self._anyone = ANYONE in trusted
        self._networks = [ip_network(one, strict=False) for one in trusted if one != ANYONE]
        self._trusts = lru_cache(maxsize=1024)(self._is_trusted)  # clients are few, and each asks often
        self._app = app
        self._behind = ProxyHeadersMiddleware(app, trusted_hosts=ANYONE if self._anyone else trusted)  # type: ignore[arg-type]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["prefix"] = self._root_path
        self._take_off(scope)
        if not self._trusts((scope.get("client") or ("",))[0]):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # Of several proxies the last one is ours; what earlier ones wrote a client may have written.
        state["forwarded_host"] = _last(headers.getlist("x-forwarded-host"))
        prefix = _last(headers.getlist("x-forwarded-prefix")).rstrip("/")
        if re.fullmatch(PREFIX, prefix):
            state["prefix"] = prefix
        await self._behind(scope, receive, send)  # type: ignore[arg-type]

    def _take_off(self, scope: Scope) -> None:
        prefix = self._root_path
        if prefix and (scope["path"] + "/").startswith(f"{prefix}/"):
            scope["path"] = scope["path"].removeprefix(prefix)
            scope["raw_path"] = scope.get("raw_path", b"").removeprefix(prefix.encode())

    def _is_trusted(self, client: str) -> bool:
        if self._anyone:
            return True
        try:
            address = ip_address(client)
        except ValueError:
            return False
        return any(address in network for network in self._networks)


def forwarded_host(scope: Scope) -> str:
    """Return the `Host` that a trusted proxy was asked for, or nothing."""
    return str(scope.get("state", {}).get("forwarded_host", ""))


def prefix(scope: Scope) -> str:
    """Return the path under which the client sees the API, without a slash at its end; nothing where it is the root."""
    return str(scope.get("state", {}).get("prefix", ""))


def _last(values: list[str]) -> str:
    return values[-1].rpartition(",")[2].strip() if values else ""
