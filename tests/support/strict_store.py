"""Doors of the real object store behind which it deletes in bulk as other stores do: strictly, or not at all."""

import http.client
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import md5
from urllib.parse import urlsplit

from tests.support.servers import Handler, Server

# Refuses a bulk delete, by its checksum and body, with a status and a body; None lets it in.
Judge = Callable[[str | None, bytes], tuple[int, bytes] | None]


def wants_md5(checksum: str | None, body: bytes) -> tuple[int, bytes] | None:
    """As MinIO before 2025, Ceph and S3 itself until 2024 do."""
    if checksum is None:
        return 400, refusal("MissingContentMD5")
    return None if checksum == b64encode(md5(body).digest()).decode() else (400, refusal("BadDigest"))  # noqa: S324


def refuses(status: int, code: str = "") -> Judge:
    """Refuse every bulk delete; without a code, by the status alone."""
    return lambda _checksum, _body: (status, refusal(code) if code else b"")


def deletes_none_of_it(_checksum: str | None, body: bytes) -> tuple[int, bytes] | None:
    """Answer 200, and in it that not one of the keys was deleted."""
    keys = [part.partition(b"</Key>")[0] for part in body.split(b"<Key>")[1:]]
    refused = b"".join(
        b"<Error><Key>%s</Key><Code>AccessDenied</Code><Message>no</Message></Error>" % key for key in keys
    )
    return 200, b"<DeleteResult>%s</DeleteResult>" % refused


def refusal(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()


@contextmanager
def before(store_url: str, judge: Judge) -> Iterator[Server]:
    """Run a door before a store; it remembers what it was asked."""
    store = urlsplit(store_url).netloc

    class Door(Handler):
        def pass_on(self) -> None:
            self.remember()
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            is_bulk = self.command == "POST" and urlsplit(self.path).query.startswith("delete")
            if is_bulk and (refused := judge(self.headers["Content-MD5"], body)):
                self.answer(*refused)
                return
            engine = http.client.HTTPConnection(store, timeout=60)
            # With the client's Host, which is what it has signed.
            engine.request(self.command, self.path, body, dict(self.headers))
            answer = engine.getresponse()
            told = answer.read()
            self.answer(answer.status, told, **({"Content-Length": answer.headers["Content-Length"] or str(len(told))}))
            engine.close()

        def do_GET(self) -> None:
            self.pass_on()

        def do_HEAD(self) -> None:
            self.pass_on()

        def do_PUT(self) -> None:
            self.pass_on()

        def do_POST(self) -> None:
            self.pass_on()

        def do_DELETE(self) -> None:
            self.pass_on()

    server = Server(Door)
    try:
        yield server
    finally:
        server.stop()
