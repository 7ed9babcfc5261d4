"""Server-sent events of a job, over HTTP from a real server, on the real engines."""

import base64
import json
import socket
from collections.abc import Iterator
from threading import Thread
from uuid import UUID, uuid4

import httpx
import pytest
import uvicorn
from httpx_sse import ServerSentEvent, connect_sse
from redis import Redis

from api.limits.streams import MAX_STREAMS, StreamLimit
from api.main import create_app
from shared.errors import TooManyStreams
from shared.infra import events, previews
from shared.infra.db import Database
from shared.infra.events import JobEvent
from shared.jobs import lifecycle
from shared.settings import Settings
from shared.vocabulary.states import JobState
from tests.support.jobs import submit
from tests.support.waiting import LIMIT_S


@pytest.fixture(scope="module")
def url(engines: Settings) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(create_app(engines), log_level="warning"))
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def client(url: str, redis: Redis) -> Iterator[httpx.Client]:
    while not redis.pubsub_numsub(events.CHANNEL)[0][1]:
        pass  # what is told before anyone listens is lost
    with httpx.Client(base_url=url, timeout=LIMIT_S) as client:
        yield client


def canceled(db: Database, job_id: UUID) -> None:
    with db.transaction() as session:
        lifecycle.cancel(session, job_id)


def test_a_stream_tells_state_progress_and_the_end_and_ends(client: httpx.Client, db: Database, redis: Redis) -> None:
    job_id = submit(db)
    seen: list[ServerSentEvent] = []
    with connect_sse(client, "GET", f"/v1/jobs/{job_id}/events") as source:
        for event in source.iter_sse():
            seen.append(event)
            if len(seen) == 1:
                events.publish(redis, JobEvent(job_id, JobState.QUEUED, 2, 1, 4))
            elif event.event == "progress":
                with db.transaction() as session:
                    assert lifecycle.claim_next(session, "farm-demo", "w", lease_s=20)
                canceled(db, job_id)
    assert [event.event for event in seen[:2]] == ["state", "progress"]
    assert seen[1].json() == {"job_id": str(job_id), "version": 2, "steps_done": 1, "steps_total": 4}
    assert [int(event.id) for event in seen] == sorted(int(event.id) for event in seen)
    assert (seen[-1].event, seen[-1].json()["state"]) == ("state", "canceled")
    assert seen[-1].json() == client.get(f"/v1/jobs/{job_id}").json()


def test_a_stream_with_previews_sends_each_once(client: httpx.Client, db: Database, redis: Redis) -> None:
    job_id = submit(db)
    with db.transaction() as session:
        run = lifecycle.claim_next(session, "farm-demo", "w", lease_s=20)
    assert run is not None

    def step(done: int) -> None:
        with db.transaction() as session:
            [version] = lifecycle.heartbeat(session, [lifecycle.Beat(job_id, run.attempt, done)], lease_s=20).values()
        events.publish(redis, JobEvent(job_id, JobState.RUNNING, version, done, 4))

    told: list[str] = []
    with connect_sse(client, "GET", f"/v1/jobs/{job_id}/events", params={"previews": "true"}) as source:
        for event in source.iter_sse():
            told.append(event.event)
            if event.event == "preview":
                assert (event.json()["index"], event.json()["content_type"]) == (0, "image/jpeg")
                assert base64.b64decode(event.json()["data"]) == b"\xff\xd8 a JPEG"
            if told == ["state"]:
                previews.put(redis, job_id, 0, b"\xff\xd8 a JPEG")
                step(1)
            elif sorted(told) == ["preview", "progress", "state"]:
                step(2)
            elif told.count("progress") == 2 and told[-1] == "progress":
                canceled(db, job_id)
                events.publish(redis, JobEvent(job_id, JobState.CANCELED))
    assert sorted(told) == ["preview", "progress", "progress", "state", "state"]
    assert told[-1] == "state"


def test_a_stream_resumes_after_the_last_event_seen(client: httpx.Client, db: Database, redis: Redis) -> None:
    job_id = submit(db)
    with connect_sse(client, "GET", f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": "1"}) as source:
        canceled(db, job_id)
        events.publish(redis, JobEvent(job_id, JobState.CANCELED, 2))
        assert [json.loads(event.data)["state"] for event in source.iter_sse()] == ["canceled"]


def test_no_stream_of_a_job_that_never_was(client: httpx.Client) -> None:
    response = client.get(f"/v1/jobs/{uuid4()}/events")
    assert (response.status_code, response.json()["code"]) == (404, "job_not_found")


def test_an_owner_holds_so_many_streams_and_no_more() -> None:
    streams = StreamLimit()
    for _ in range(MAX_STREAMS):
        streams.enter("a")
    with pytest.raises(TooManyStreams):
        streams.enter("a")
    streams.enter("b")
    streams.leave("a")
    streams.enter("a")
