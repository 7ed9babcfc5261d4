"""The proxies misbehave as they say, and only while they are told to."""

from collections.abc import Iterator
from threading import Event
from uuid import UUID

import pytest
import urllib3
from urllib3.exceptions import HTTPError

from tests.chaos import proxy
from tests.chaos.proxy import Mode, Proxy
from tests.support.servers import Handler, Server
from tests.support.waiting import until

JOB = UUID(int=7)
UPLOAD = f"/farm/jobs/{JOB}/1/0.png"
BODY = b"x" * 4000


class Store(Handler):
    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if len(body) == len(BODY):
            self.remember()
            self.answer(200, body)


@pytest.fixture
def store() -> Iterator[Server]:
    server = Server(Store)
    yield server
    server.stop()


@pytest.fixture
def door(store: Server) -> Iterator[Proxy]:
    with proxy.before(store.server_port) as (door,):
        yield door


def put(door: Proxy, timeout_s: float = 10.0) -> urllib3.BaseHTTPResponse:
    with urllib3.PoolManager(retries=False, timeout=timeout_s) as http:
        return http.request("PUT", f"http://127.0.0.1:{door.port}{UPLOAD}", body=BODY)


def test_by_default_everything_passes(door: Proxy) -> None:
    assert put(door).data == BODY


def test_errors_are_answered_without_the_engine(door: Proxy, store: Server) -> None:
    with door.misbehaving(Mode.ERRORS):
        assert put(door).status == 500
    assert store.asked == []
    assert put(door).status == 200


def test_a_hole_swallows_everything_and_breaks_off_when_it_closes(door: Proxy, store: Server) -> None:
    with door.misbehaving(Mode.HOLE), pytest.raises(HTTPError):
        put(door, timeout_s=0.3)
    assert store.asked == []
    assert put(door).status == 200


def test_a_slow_door_lets_everything_through_in_the_end(door: Proxy) -> None:
    with door.misbehaving(Mode.SLOW):
        assert put(door).data == BODY


@pytest.mark.parametrize(("moment", "arrives"), [("upload", False), ("stored", True)])
def test_a_trap_holds_an_upload_at_its_moment(door: Proxy, store: Server, moment: str, arrives: bool) -> None:
    sprung, jobs = Event(), []

    def spring(job: str) -> None:
        jobs.append(job)
        sprung.set()

    door.trap(moment, spring)
    with pytest.raises(HTTPError):
        put(door, timeout_s=2.0)
    assert sprung.wait(20)
    assert jobs == [str(JOB)]
    assert until(lambda: bool(store.asked), 20) if arrives else store.asked == []
    assert not door.disarm()
