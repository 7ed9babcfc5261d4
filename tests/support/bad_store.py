"""A store that cannot be trusted: a proxy before the real one that cuts, keeps nothing, or loses what it was given."""

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from shared.infra.storage import IMAGES
from shared.settings import Settings
from tests.support.servers import Handler, Server
from tests.support.waiting import LIMIT_S


class _Proxied(Handler):
    def do_PUT(self) -> None:
        store: BadStore = self.server
        if store.keeps_nothing:
            self._body()
            self.answer(200, ETag='"d41d8cd98f00b204e9800998ecf8427e"')
        elif store.damages_puts:
            store.damages_puts -= 1
            self._pass_on(bytes(len(self._body())))
        else:
            self._pass_on(self._body())

    def do_GET(self) -> None:
        store: BadStore = self.server
        if f"/{store.cut_prefix}" in self.path:
            store.ranges.append(self.headers["Range"])
        if store.breaks_gets and f"/{store.cut_prefix}" in self.path:
            store.breaks_gets -= 1
            self._pass_on(b"", cut=2, breaks=True)
        elif store.cuts_gets and f"/{store.cut_prefix}" in self.path:
            store.cuts_gets -= 1
            self._pass_on(b"", cut=2)
        else:
            self._pass_on(b"")

    def do_HEAD(self) -> None:
        self._pass_on(b"")

    def do_POST(self) -> None:
        self._pass_on(self._body())

    def do_DELETE(self) -> None:
        self._pass_on(b"")

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _pass_on(self, body: bytes, *, cut: int = 1, breaks: bool = False) -> None:
        """Ask the real store, and hand on the first `1 / cut` of its answer; one that breaks had announced the whole."""
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=LIMIT_S)
        # The signature covers the Host header, so the real store sees the one that the farm sent.
        upstream.request(self.command, self.path, body or None, dict(self.headers))
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        kept = data[: len(data) // cut]
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"content-length", "transfer-encoding", "connection", "date", "server"}:
                self.send_header(name, value)
        length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(kept))
        self.send_header("Content-Length", str(len(data)) if breaks else length)
        self.end_headers()
        self.wfile.write(kept)
        self.close_connection = self.close_connection or breaks


class BadStore(Server):
    """A proxy before the store of `settings`; `settings` of its own lead to it. How many answers it spoils is counted down."""

    def __init__(self, settings: Settings) -> None:
        self.upstream = urlsplit(settings.s3_endpoint_url or "").netloc
        self.cuts_gets = 0
        self.breaks_gets = 0
        self.ranges: list[str | None] = []
        self.cut_prefix = IMAGES
        self.damages_puts = 0
        self.keeps_nothing = False
        super().__init__(_Proxied)
        self.settings = settings.model_copy(update={"s3_endpoint_url": self.url})


@contextmanager
def bad_store(settings: Settings) -> Iterator[BadStore]:
    """Run one for as long as the block lasts."""
    store = BadStore(settings)
    try:
        yield store
    finally:
        store.stop()
