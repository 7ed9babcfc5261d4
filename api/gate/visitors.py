"""Middleware that turns away requests for a name that is not the farm's, and those that pages of other sites make browsers send.

A farm without keys trusts whoever reaches it, and on a laptop every web page does, by way of the browser. Where clients have
keys, a browser adds one by itself only as the password of HTTP Basic: a request with a Bearer token is no forgery.
"""

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api import problems
from api.gate.hosts import Host, Hosts, same
from api.gate.proxies import forwarded_host
from shared.errors import CrossOrigin, FarmError, HostNotAllowed
from shared.settings import Settings, words

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
# Asked by load balancers and orchestrators under whatever name; they tell nothing of what the farm does.
PROBES = frozenset({"/healthz", "/readyz"})
# What browsers say of the page behind a request: the farm's own, or none, as when a person types the address.
OURS = frozenset({"same-origin", "none"})
MAX_ECHO_CHARS = 64


class Visitors:
    """ASGI middleware for all requests. Pages of `origins` may call from the browser."""

    def __init__(self, app: ASGIApp, *, settings: Settings, bound: str = "") -> None:
        self._app = app
        self._origins = frozenset(words(settings.cors_origins))
        self._hosts = Hosts(settings.allowed_hosts, bound=bound)
        self._has_keys = settings.auth != "none"
        self._is_named = not self._has_keys or bool(settings.allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is not None:
            await problems.of(Request(scope), refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> FarmError | None:
        headers = Headers(scope=scope)
        if self._is_named and scope["path"] not in PROBES and (stranger := self._stranger(scope, headers)) is not None:
            return HostNotAllowed(
                f"This farm does not answer to the name {stranger[:MAX_ECHO_CHARS]!r}; "
                "an operator lists its names in FARM_ALLOWED_HOSTS."
            )
        if scope["method"] not in SAFE and not self._is_vouched(headers) and self._is_foreign(scope, headers):
            return CrossOrigin()
        return None

    def _stranger(self, scope: Scope, headers: Headers) -> str | None:
        """Return a name that the request is for and that is not the farm's; None if all are.

        A proxy may write its own name into `Host` and the client's into X-Forwarded-Host.
        """
        address = (scope.get("server") or (None,))[0]
        for text in [*(headers.getlist("host") or [""]), *filter(None, [forwarded_host(scope)])]:
            host = Host.read(text)
            if host is None or not self._hosts.include(host, address):
                return text
        return None

    def _is_vouched(self, headers: Headers) -> bool:
        return self._has_keys and headers.get("authorization", "").lower().startswith("bearer ")

    def _is_foreign(self, scope: Scope, headers: Headers) -> bool:
        """Whether a browser sends this for a page of another origin (CSRF). Other clients send neither header."""
        origin = headers.get("origin")
        page = Host.of_origin(origin) if origin is not None else None
        if (origin is not None and self._origins & {origin, "*"}) or (page and page.name in self._hosts.listed):
            return False
        if headers.get("sec-fetch-site", "none") not in OURS:
            return True
        if origin is None:
            return False
        host = Host.read(forwarded_host(scope) or headers.get("host", ""))
        return page is None or host is None or not same(page, host, origin.partition("://")[0])
