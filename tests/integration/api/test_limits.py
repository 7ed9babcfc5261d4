"""What one client can make the api hold, or wait for: heads, bodies and their pace, on a real server and in the app."""

import asyncio
import gzip
import json
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from threading import Event, Thread
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import serve
from api.limits import bodies, connections
from api.limits.bodies import BodyLimit
from tests.support.waiting import LIMIT_S

MAX_BYTES = 4 * bodies.PIECE_BYTES
HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"


class Server(uvicorn.Server):
    """A real server on loopback."""

    @property
    def address(self) -> tuple[str, int]:
        found: tuple[str, int] = self.servers[0].sockets[0].getsockname()[:2]
        return found


HELD, LET_GO = Event(), Event()


def _healthy() -> dict[str, str]:
    return {}


def _held() -> dict[str, str]:
    HELD.set()
    LET_GO.wait(LIMIT_S)
    return {}


@pytest.fixture
def server() -> Iterator[Server]:
    app = FastAPI()
    app.get("/healthz")(_healthy)
    app.get("/wait")(_held)
    config = serve.config("127.0.0.1", 0)
    config.app, config.factory, config.log_level, config.lifespan = app, False, "critical", "off"
    running = Server(config)
    thread = Thread(target=running.run)
    thread.start()
    while not running.started:
        thread.join(0.01)
    yield running
    running.should_exit = True
    thread.join()


def said(server: Server, *parts: bytes) -> bytes:
    """Send the parts and return all that comes until the server closes."""
    with socket.create_connection(server.address, timeout=LIMIT_S) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            for part in parts:
                connection.sendall(part)
        answer = b""
        with suppress(ConnectionResetError):
            while data := connection.recv(65536):
                answer += data
        return answer


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the option is glibc's")
def test_memory_of_large_bodies_is_given_back() -> None:
    used = """
from pathlib import Path
from api import serve
serve.give_memory_back()
def used():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
before = used()
for size in (2**23, 2**22):  # the second time the library has learned from the first
    bodies = [(b"x" * size, bytes(1000)) for _ in range(40)]  # something small between them stays in use
    kept = [small for _, small in bodies]
    del bodies
print(used() - before)
"""
    left = subprocess.run([sys.executable, "-c", used], capture_output=True, check=True, text=True).stdout
    assert int(left) < 2**24


def test_an_honest_request_is_answered(server: Server) -> None:
    assert said(server, HEAD, b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_a_head_without_end_is_cut_off(server: Server) -> None:
    answer = said(server, HEAD, *(b"X-%d: %s\r\n" % (n, b"x" * 1000) for n in range(200)))
    # Where the client is still sending, its system may drop the answer with the connection.
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"NONSENSE / HTTP/1.1\r\n\r\n", 400, "malformed_request"),
        (HEAD + b"X: " + b"x" * serve.MAX_HEAD_BYTES + b"\r\n\r\n", 431, "head_too_large"),
    ],
)
def test_what_is_no_request_is_told_so_as_a_problem(server: Server, sent: bytes, status: int, code: str) -> None:
    head, _, document = said(server, sent).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"content-type: application/problem+json" in head
    assert json.loads(document)["code"] == code


def test_connections_that_nobody_uses_make_way(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST", 8)
    with ExitStack() as crowd:
        held = crowd.enter_context(socket.create_connection(server.address, timeout=LIMIT_S))
        held.sendall(HEAD.replace(b"/healthz", b"/wait") + b"\r\n")
        HELD.wait(LIMIT_S)
        idle = [crowd.enter_context(socket.create_connection(server.address, timeout=LIMIT_S)) for _ in range(20)]
        idle[0].settimeout(LIMIT_S)
        assert idle[0].recv(1) == b""
        assert said(server, HEAD + b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 200")
        LET_GO.set()
        assert held.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_second_head_is_bounded_too(server: Server) -> None:
    answer = said(server, HEAD, b"\r\n", HEAD, b"X: " + b"x" * 2 * serve.MAX_HEAD_BYTES)
    assert answer.count(b"HTTP/1.1 200") <= 1


@pytest.mark.parametrize("begun", [b"", HEAD], ids=["silent", "half a head"])
def test_a_head_that_does_not_come_is_not_waited_for(
    server: Server, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(serve, "HEAD_S", 0.05)
    assert said(server, begun) == b""


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    more = True
    while more:
        more = (await receive()).get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


def whose(scope: Scope) -> str:
    return str(scope.get("owner", "someone"))


def limited(app: ASGIApp, max_bytes: int) -> BodyLimit:
    return BodyLimit(app, max_bytes=max_bytes, sharer=whose)


async def asked(
    limit: BodyLimit, *chunks: bytes, ends: bool = True, owner: str = "someone", **headers: str
) -> tuple[int, dict[str, Any]]:
    """Send a body to the middleware; its status, and the problem if it was refused."""
    messages: list[Message] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    if ends:
        messages.append({"type": "http.request", "body": b"", "more_body": False})
    sent: list[Message] = []

    async def receive() -> Message:
        return messages.pop(0) if messages else await asyncio.Future()

    async def send(message: Message) -> None:
        sent.append(message)

    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "headers": named, "path": "/", "method": "POST", "owner": owner}
    await limit(scope, receive, send)
    content = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(content) if content != b"ok" else {}


async def refused(limit: BodyLimit, *chunks: bytes, ends: bool = True, **about: str) -> int:
    with pytest.raises(HTTPException) as error:
        await asked(limit, *chunks, ends=ends, **about)
    return error.value.status_code


def test_compressed_bodies_are_refused_unread() -> None:
    bomb = gzip.compress(b"0" * 1_000_000)
    status, problem = asyncio.run(asked(limited(_echo, 10_000), bomb, content_encoding="gzip"))
    assert (status, problem["code"]) == (415, "unsupported_encoding")
    assert asyncio.run(asked(limited(_echo, 10_000), b"x", content_encoding="Identity"))[0] == 200


def test_a_body_that_grows_too_large_is_refused() -> None:
    limit = limited(_echo, 10)
    assert asyncio.run(asked(limit, b"12345", b"67890"))[0] == 200
    assert asyncio.run(refused(limit, b"12345", b"67890", b"1")) == 413
    assert asyncio.run(asked(limit, content_length="11"))[0] == 413
    lying = asyncio.run(refused(limit, b"12345", b"67890", b"1", content_length="1"))
    assert lying == 413


@pytest.mark.parametrize("announced", [{"content_length": str(MAX_BYTES)}, {"transfer_encoding": "chunked"}])
def test_bodies_of_one_owner_leave_room_for_others(monkeypatch: pytest.MonkeyPatch, announced: dict[str, Any]) -> None:
    monkeypatch.setattr(bodies, "PATIENCE_S", 0.05)
    limit = limited(_echo, MAX_BYTES)
    part = b"x" * (MAX_BYTES - 1)

    async def run() -> None:
        silent = [
            asyncio.create_task(asked(limit, part, ends=False, **announced)) for _ in range(bodies.BODIES_AT_ONCE)
        ]
        over, within = await asyncio.wait(silent, timeout=5, return_when=asyncio.FIRST_EXCEPTION)
        assert {one.exception().status_code for one in over} == {503}  # type: ignore[union-attr]
        assert await refused(limit, part, **announced) == 503
        assert (await asked(limit, b"small"))[0] == 200
        assert (await asked(limit, part, owner="another", **announced))[0] == 200
        for one in within:
            one.cancel()
        await asyncio.wait(silent)
        assert (await asked(limit, part, **announced))[0] == 200

    asyncio.run(run())


def test_large_bodies_wait_for_those_before_them() -> None:
    begun = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await _echo(scope, receive, send)
        await begun.wait()

    async def run() -> None:
        limit = limited(slow, MAX_BYTES)
        part = b"x" * (MAX_BYTES - 1)
        many = [asyncio.create_task(asked(limit, part)) for _ in range(3 * bodies.BODIES_AT_ONCE)]
        await asyncio.sleep(0)
        begun.set()
        assert {status for status, _ in await asyncio.gather(*many)} == {200}

    asyncio.run(run())


@pytest.mark.parametrize("begun", [b"1", b"x" * bodies.PIECE_BYTES], ids=["drips", "begins fast"])
def test_a_body_that_falls_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    monkeypatch.setattr(bodies, "PIECE_S", 0.05)
    assert asyncio.run(refused(limited(_echo, MAX_BYTES), begun, ends=False)) == 408
