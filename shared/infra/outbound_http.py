"""HTTP client for URLs of clients, guarded against SSRF: it sends webhooks and fetches pictures.

It resolves a name once, checks all its addresses (`url_guard`) and dials one of these, so that DNS cannot change in between;
Host, SNI and certificate stay the name's. A whole exchange has one deadline.
"""

import socket
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from ssl import SSLContext
from threading import Thread
from typing import Any, TypeAlias
from urllib.parse import urljoin

import httpcore

from shared.errors import BlockedUrl, UrlUnreachable
from shared.infra.deadline import left_s
from shared.infra.url_guard import parse, permitted, refusal

MAX_REDIRECTS = 3
_CONNECT_SECONDS = 5.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_AGENT = {"User-Agent": "render-farm", "Accept-Encoding": "identity"}  # packed bodies would grow past their cap

Resolve: TypeAlias = Callable[[str, int], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Reply:
    """Status and headers of an answer; header names are lower-case."""

    status: int
    headers: Mapping[str, str]


class OutboundHttp:
    """The HTTP client. Holds no connection, so threads may share it."""

    def __init__(
        self,
        *,
        allow_private: bool,
        resolve: Resolve | None = None,
        dial: httpcore.NetworkBackend | None = None,
        ssl_context: SSLContext | None = None,
    ) -> None:
        self._allow_private = allow_private
        self._resolve = resolve or _resolved
        self._dial = dial or httpcore.SyncBackend()
        # One for all: reading the certificates takes tens of milliseconds.
        self._ssl_context = ssl_context or httpcore.default_ssl_context()

    def post(self, url: str, body: bytes, *, headers: Mapping[str, str], deadline_s: float) -> Reply:
        """POST a body and return the answer without its body. Redirects are not followed.

        Raises `BlockedUrl`, or `UrlUnreachable` when no answer came within `deadline_s`.
        """
        sized = {**headers, "Content-Length": str(len(body))}
        with self._exchange("POST", url, sized, body, until=_until(deadline_s)) as response:
            return Reply(response.status, _lowered(response.headers))

    def fetch(self, url: str, *, max_bytes: int, deadline_s: float) -> bytes:
        """GET a URL, at most `max_bytes`. Follows redirects, each checked like the first URL.

        Raises `BlockedUrl`, or `UrlUnreachable` for any other failure within `deadline_s`.
        """
        until = _until(deadline_s)
        for _ in range(MAX_REDIRECTS + 1):
            with self._exchange("GET", url, {}, b"", until=until) as response:
                if response.status not in _REDIRECTS:
                    return _body(response, max_bytes)
                url = urljoin(url, _lowered(response.headers).get("location", ""))
        raise UrlUnreachable(f"The URL was redirected more than {MAX_REDIRECTS} times.")

    @contextmanager
    def _exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, *, until: float
    ) -> Generator[httpcore.Response, None, None]:
        target = parse(url, allow_private=self._allow_private)
        asked = [*{"Host": target.authority, **_AGENT, **headers}.items()]
        dialled = httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
        try:
            with (
                httpcore.HTTPConnection(
                    dialled.origin,
                    ssl_context=self._ssl_context,
                    network_backend=_Guard(self._addresses, self._dial, until),
                ) as connection,
                connection.stream(method, dialled, headers=asked, content=body) as response,
            ):
                yield response
        except httpcore.TimeoutException as error:
            raise UrlUnreachable(f"{target.host} did not answer in time.") from error
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
            raise UrlUnreachable(f"{target.host} could not be reached: {_why(error)}") from error

    def _addresses(self, host: str, port: int, timeout_s: float) -> Sequence[str]:
        """Resolve a name and check every address. Raises `BlockedUrl` if one of them is not permitted."""
        found = _with_timeout(timeout_s, lambda: self._resolve(host, port))
        if not all(permitted(ip_address(one), allow_private=self._allow_private) for one in found):
            raise BlockedUrl(refusal(host))
        return found


class _Guard(httpcore.NetworkBackend):
    """Dials only what `addresses` returns, and gives every operation what is left of the deadline."""

    def __init__(
        self, addresses: Callable[[str, int, float], Sequence[str]], dial: httpcore.NetworkBackend, until: float
    ) -> None:
        self._addresses = addresses
        self._dial = dial
        self._until = until

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - the deadline rules
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address that accepts."""
        refused: Exception = httpcore.ConnectError("the name has no address")
        for address in self._addresses(host, port, min(_CONNECT_SECONDS, _left(self._until))):
            try:
                timeout_s = min(_CONNECT_SECONDS, _left(self._until))
                stream = self._dial.connect_tcp(address, port, timeout_s, local_address, socket_options)
                return _Stream(stream, self._until)
            except (httpcore.NetworkError, httpcore.TimeoutException) as error:
                refused = error
        raise refused


class _Stream(httpcore.NetworkStream):
    """A connection whose every operation ends with the deadline, however slowly the other side trickles."""

    def __init__(self, stream: httpcore.NetworkStream, until: float) -> None:
        self._stream = stream
        self._until = until

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        return self._stream.read(max_bytes, _left(self._until))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        self._stream.write(buffer, _left(self._until))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, _left(self._until)), self._until)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _resolved(host: str, port: int) -> Sequence[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _with_timeout(timeout_s: float, resolve: Callable[[], Sequence[str]]) -> Sequence[str]:
    """Run a resolver, which has no timeout, on a thread; give up on the thread after `timeout_s`."""
    outcome: list[Sequence[str] | Exception] = []

    def run() -> None:
        try:
            outcome.append(resolve())
        except (OSError, UnicodeError) as error:
            outcome.append(error)

    thread = Thread(target=run, name="resolve", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not outcome:
        raise httpcore.ConnectTimeout("the name could not be resolved in time")
    if isinstance(outcome[0], Exception):
        raise httpcore.ConnectError("the name could not be resolved") from outcome[0]
    return outcome[0]


def _until(deadline_s: float) -> float:
    return time.monotonic() + min(deadline_s, left_s())


def _left(until: float) -> float:
    left_s = until - time.monotonic()
    if left_s <= 0:
        raise httpcore.ReadTimeout("the deadline has passed")
    return left_s


def _body(response: httpcore.Response, max_bytes: int) -> bytes:
    if response.status != 200:
        raise UrlUnreachable(f"The URL answered {response.status} instead of 200.")
    chunks: list[bytes] = []
    size = 0
    for chunk in response.iter_stream():
        size += len(chunk)
        if size > max_bytes:
            raise UrlUnreachable(f"The file is larger than {max_bytes} bytes.")
        chunks.append(chunk)
    return b"".join(chunks)


def _lowered(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}


def _why(error: Exception) -> str:
    # The words of the library and of the operating system, in short; they name no address that the client did not.
    return str(error)[:200] or type(error).__name__
