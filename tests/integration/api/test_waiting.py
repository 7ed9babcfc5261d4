"""Waiting when things go wrong: Redis dead, events lost, clients gone, hundreds at once."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from threading import Thread
from uuid import UUID

import fastapi.routing
import httpx
import pytest
import uvicorn
from fastapi.testclient import TestClient
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from api.limits.workrooms import Workroom
from api.main import create_app
from api.v1.long_poll import MAX_WAIT_S, preferred_wait_s
from api.waiting.job_updates import JobUpdates
from shared.infra import broker, events
from shared.infra.db import Database
from shared.infra.events import JobEvent
from shared.jobs import lifecycle
from shared.settings import Settings
from shared.vocabulary.states import JobState
from tests.support.factories import params
from tests.support.waiting import LIMIT_S, until

WAITERS = 300


@pytest.fixture(scope="module")
def front(engines: Settings) -> Iterator[tuple[str, JobUpdates]]:
    """An api behind a real server, and its subscribers."""
    app = create_app(engines)
    with socket.create_server(("127.0.0.1", 0), backlog=WAITERS) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        httpx.get(f"{url}/healthz", timeout=LIMIT_S)
        yield url, app.state.desk.updates
        server.should_exit = True
        thread.join()


@pytest.fixture
def job_id(db: Database, redis: Redis) -> UUID:
    assert redis.ping()
    with db.transaction() as session:
        return lifecycle.submit(session, params(), max_attempts=3).id


def canceled(db: Database, job_id: UUID) -> None:
    """Cancel a job, and tell nobody."""
    with db.transaction() as session:
        lifecycle.cancel(session, job_id)


@pytest.mark.parametrize("is_dead", [False, True], ids=["a lost event", "a dead Redis"])
def test_without_events_the_row_is_looked_at(
    is_dead: bool, settings: Settings, db: Database, job_id: UUID, free_port: int
) -> None:
    url = f"redis://127.0.0.1:{free_port}" if is_dead else settings.redis_url.get_secret_value()

    async def waited() -> JobState:
        async with JobUpdates(db, AsyncRedis.from_url(url), Workroom("updates", 4), poll_s=0.05) as updates:
            final = asyncio.create_task(updates.wait_until_final(job_id, 30))
            while not updates.subscriber_count:
                await asyncio.sleep(0)
            await asyncio.to_thread(canceled, db, job_id)
            row = await final
            assert row is not None
            return JobState(row.state)

    assert asyncio.run(waited()) is JobState.CANCELED


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@pytest.mark.parametrize("path", ["?wait=60", "/events"])
def test_nobody_waits_for_a_client_that_has_gone(front: tuple[str, JobUpdates], job_id: UUID, path: str) -> None:
    url, updates = front
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
        client.sendall(f"GET /v1/jobs/{job_id}{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert until(lambda: updates.subscriber_count == 1)
    assert until(lambda: updates.subscriber_count == 0)


def test_a_crowd_that_leaves_is_not_looked_up(
    front: tuple[str, JobUpdates], job_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, updates = front
    address = ("127.0.0.1", int(url.rpartition(":")[2]))
    looked_up: list[UUID] = []
    monkeypatch.setattr("api.v1.jobs.outlook", lambda _session, _desk, row: looked_up.append(row.id))
    request = f"GET /v1/jobs/{job_id}?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    with ExitStack() as crowd:
        for _ in range(20):
            crowd.enter_context(socket.create_connection(address)).sendall(request)
        assert until(lambda: updates.subscriber_count == 20)
    assert until(lambda: updates.subscriber_count == 0)
    assert httpx.get(f"{url}/v1/jobs/{job_id}", timeout=LIMIT_S).is_success
    assert looked_up == [job_id]


def test_hundreds_wait_at_once_and_submits_go_on(
    front: tuple[str, JobUpdates], db: Database, redis: Redis, announced: str
) -> None:
    url, updates = front
    with db.transaction() as session:
        job_id = lifecycle.submit(session, params(), max_attempts=3).id

    async def waited() -> list[str]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=LIMIT_S) as http:
            asked = [asyncio.create_task(http.get(f"/v1/jobs/{job_id}?wait=60")) for _ in range(WAITERS)]
            while updates.subscriber_count < WAITERS:
                await asyncio.sleep(0.01)
            submitted = await http.post("/v1/jobs", json={"prompt": "p", "checkpoint": announced})
            assert submitted.status_code == 202
            await asyncio.to_thread(canceled, db, job_id)
            events.publish(redis, JobEvent(job_id, JobState.CANCELED, 9))
            return [answer.json()["state"] for answer in await asyncio.gather(*asked)]

    assert asyncio.run(waited()) == ["canceled"] * WAITERS


def test_a_quiet_stream_is_kept_alive(
    front: tuple[str, JobUpdates], job_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastapi.routing, "_PING_INTERVAL", 0.05)
    with httpx.stream("GET", f"{front[0]}/v1/jobs/{job_id}/events", timeout=LIMIT_S) as answer:
        lines = iter(answer.iter_lines())
        assert any(line.startswith(":") for line in lines)


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        (["wait=10"], 10),
        (["respond-async, wait = 10"], 10),
        (["respond-async", 'WAIT="7"; foo'], 7),
        (["wait=100000"], MAX_WAIT_S),
        (["wait=5.5"], 0),
        (["wait=-1"], 0),
        (["wait"], 0),
        (["waiting=5"], 0),
        (["wait=9999999999"], 0),
    ],
)
def test_a_preference_that_is_not_understood_is_ignored(headers: list[str], wait_s: int) -> None:
    assert preferred_wait_s(headers) == wait_s


REFUSED = [
    ("/v1/jobs/{}?wait=-1", "invalid_request"),
    ("/v1/jobs/{}?wait=61", "invalid_request"),
    ("/v1/jobs/{}?wait=1.5", "invalid_request"),
    ("/v1/jobs/{}?wait=x", "invalid_request"),
    ("/v1/jobs?cursor=nonsense", "bad_cursor"),
    ("/v1/batches?cursor=nonsense", "bad_cursor"),
    ("/v1/webhooks/deliveries?cursor=nonsense", "bad_cursor"),
    ("/v1/events?after=nonsense", "bad_cursor"),
]


@pytest.mark.parametrize(("path", "code"), REFUSED)
def test_nonsense_is_refused(engines: Settings, job_id: UUID, path: str, code: str) -> None:
    with TestClient(create_app(engines)) as client:
        answer = client.get(path.format(job_id))
    assert (answer.status_code, answer.json()["code"]) == (422, code)


def test_a_wait_is_told_to_have_been_heard(front: tuple[str, JobUpdates], db: Database, job_id: UUID) -> None:
    canceled(db, job_id)
    answer = httpx.get(f"{front[0]}/v1/jobs/{job_id}", headers={"Prefer": "wait=10"}, timeout=LIMIT_S)
    assert answer.headers["Preference-Applied"] == "wait=10"


def test_whoever_listens_stops_at_whatever_moment(db: Database, settings: Settings) -> None:
    """As when an api's port is taken: it ends right after it began."""

    async def begin_and_end(turns: int) -> None:
        async with asyncio.timeout(10), JobUpdates(db, broker.connect_async(settings), Workroom("updates", 4)):
            for _ in range(turns):
                await asyncio.sleep(0)

    for turns in range(24):
        asyncio.run(begin_and_end(turns))
