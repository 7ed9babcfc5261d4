"""What one client sends or leaves unread, others do not feel: bodies, held calls, absurd JSON, large answers."""

import asyncio
import base64
import hashlib
import json
import socket
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import pytest
from fastapi.testclient import TestClient
from httpx import ASGITransport
from redis import Redis

from api import large_answers, problems
from api.auth import keys
from api.auth.keys import NewKey, Scope
from api.desk import ANSWERS_BYTES
from api.limits import bodies
from api.main import create_app
from shared.infra.db import Database
from shared.infra.storage import Storage, image_key
from shared.jobs import lifecycle
from shared.jobs.lifecycle import FinishedImage
from shared.settings import Settings
from tests.support.answers import problem
from tests.support.factories import BODY, DEMO, png
from tests.support.jobs import claimed, row
from tests.support.waiting import LIMIT_S, until
from tests.support.workshop import serving

MAX_BYTES = 4 * 2**20
# A picture of 64 px that takes most of the largest body: what follows a PNG's end is not read.
LARGE = base64.b64encode(png("red") + b"\0" * (MAX_BYTES * 3 // 4 - 8192)).decode()
HUGE_PROBLEM = 64 * 1024
SLOW_S = 0.2  # of a loop that is held up; it is meant to be a fourth of that at most, on cores of its own


@pytest.fixture
def farm(engines: Settings, announced: str, redis: Redis) -> Settings:
    assert announced == DEMO
    assert redis.ping()
    return engines.model_copy(update={"auth": "keys", "max_body_bytes": MAX_BYTES, "default_checkpoint": DEMO})


@pytest.fixture
def tokens(db: Database) -> list[str]:
    """Keys of two owners."""
    with db.transaction() as session:
        return [keys.create(session, NewKey(name=name, scopes=frozenset(Scope)))[1].text for name in "ab"]


@contextmanager
def sending(address: str, path: str, token: str, body: bytes, *, silent: int = 0) -> Iterator[socket.socket]:
    """A connection on which a body was sent, but for its last bytes."""
    url = urlsplit(address)
    head = f"POST {path} HTTP/1.1\r\nHost: farm\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((str(url.hostname), url.port or 80), timeout=LIMIT_S) as client:
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
        client.settimeout(1 if silent else LIMIT_S)  # what the farm does not read, stays here
        with suppress(TimeoutError):
            client.sendall(body[: len(body) - silent])
        client.settimeout(LIMIT_S)
        yield client


def is_served(address: str, token: str) -> bool:
    """Submit a small job and a large one."""
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=address, headers=headers, timeout=LIMIT_S) as client:
        answers = [client.post("/v1/jobs", json={**BODY, **more}) for more in ({}, {"init_image": LARGE})]
    return [answer.status_code for answer in answers] == [202, 202]


def test_silent_bodies_of_one_key_keep_nobody_out(
    farm: Settings, tokens: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "PIECE_S", 60.0)
    body = json.dumps({**BODY, "init_image": LARGE}).encode()
    with serving(farm) as address, ExitStack() as open_bodies:
        for _ in range(bodies.BODIES_AT_ONCE):
            open_bodies.enter_context(sending(address, "/v1/jobs", tokens[0], body, silent=5))
        assert is_served(address, tokens[1])


@pytest.mark.parametrize(
    ("path", "pictures"),
    [
        ("/sdapi/v1/img2img", {"init_images": [LARGE]}),
        ("/v1/jobs?wait=60", {"init_image": LARGE}),
        # What the answer will repeat is kept: of one's own part.
        ("/sdapi/v1/img2img", {"init_images": [LARGE], "include_init_images": True}),
    ],
    ids=["A1111", "wait", "repeated"],
)
def test_held_calls_let_go_of_what_they_were_sent(
    farm: Settings, tokens: list[str], path: str, pictures: dict[str, Any]
) -> None:
    repeats = "include_init_images" in pictures
    count = 2 if repeats else bodies.BODIES_AT_ONCE
    sent = json.dumps({**BODY, **pictures}).encode()
    with serving(farm) as address, ExitStack() as calls:
        mine = httpx.Client(base_url=address, headers={"Authorization": f"Bearer {tokens[0]}"}, timeout=LIMIT_S)
        calls.enter_context(mine)
        tracemalloc.start()
        calls.callback(tracemalloc.stop)
        for number in range(1, count + 1):
            calls.enter_context(sending(address, path, tokens[0], sent))
            assert until(lambda number=number: len(mine.get("/v1/jobs").json()["jobs"]) == number)  # type: ignore[misc]
        kept = count * len(LARGE) if repeats else 0
        assert until(lambda: kept <= tracemalloc.get_traced_memory()[0] < kept + 2 * len(LARGE))
        assert is_served(address, tokens[1])


def test_absurd_json_is_refused_in_few_words(farm: Settings, tokens: list[str]) -> None:
    flat = b"{" + b",".join(b'"a%d":1' % number for number in range(200_000)) + b"}"
    many = b'{"prompt":[' + b"{}," * 200_000 + b"1]}"
    deep = b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    doubled = b"{" + b'"prompt":1,' * 200_000 + b'"steps":1}'
    digits = b'{"seed":[' + b",".join([b"1" * 4000] * 500) + b"]}"
    with TestClient(create_app(farm), headers={"Authorization": f"Bearer {tokens[0]}"}) as client:
        for path in ("/v1/prompts/tokens", "/v1/jobs", "/v1/batches", "/sdapi/v1/txt2img", "/internal/progress"):
            for body in (flat, many, deep, doubled, digits):
                refusal = client.post(path, content=body, headers={"Content-Type": "application/json"})
                assert refusal.status_code in {400, 422}, (path, body[:20])
                assert len(refusal.content) < 1024
        assert not client.get("/v1/jobs").json()["jobs"]


def test_no_problem_names_more_than_a_few_faults(farm: Settings, tokens: list[str]) -> None:
    unknown = {f"field_{number}": 1 for number in range(990)}
    with TestClient(create_app(farm), headers={"Authorization": f"Bearer {tokens[0]}"}) as client:
        found = problem(client.post("/v1/jobs", json={**BODY, **unknown}), 422, "invalid_request")
        assert len(found["errors"]) == problems.MAX_FAULTS
        assert found["detail"].startswith("field_0: Extra inputs are not permitted; field_1: ")
        assert found["detail"].endswith(f"; and {990 - problems.MAX_FAULTS} more")
        names = [{f"{letter * 100_000}{number}": 1 for number in range(9)} for letter in "x\u0001\U0001f600\ud800."]
        for bad in (*names, unknown):
            for path, body in {
                "/v1/jobs": bad,
                "/v1/batches": {"jobs": [bad] * 1000 if bad is unknown else [bad]},
            }.items():
                spelled = json.dumps(body).encode()
                refusal = client.post(path, content=spelled[:MAX_BYTES], headers={"Content-Type": "application/json"})
                assert refusal.status_code in {400, 413, 422}
                assert len(refusal.content) < HUGE_PROBLEM
        dialect = client.post("/sdapi/v1/txt2img", json={"styles": [[]] * 50_000, **dict.fromkeys(unknown, "x")})
        assert dialect.status_code == 422
        assert len(dialect.json()["detail"]) <= problems.MAX_FAULTS


def test_the_largest_bodies_do_not_hold_up_the_loop(farm: Settings, tokens: list[str]) -> None:
    """Each is validated, or refused, beside the event loop; the API's description is made there, too."""
    jobs = [{**BODY, "negative_prompt": "x" * 900, "loras": [{"name": "a"}] * 8}] * 1000
    sweep = {"template": {**BODY, "sampler": "nope"}, "grid": {"seed": list(range(1000))}}
    wanted: list[tuple[str, bytes]] = [
        ("/v1/batches", json.dumps({"jobs": [*jobs, {}]}).encode()),
        ("/v1/batches", json.dumps(sweep).encode()),
        ("/v1/batches", json.dumps({"jobs": [{f"u{number}": 1 for number in range(90)}] * 1000}).encode()),
        ("/v1/jobs", json.dumps({**BODY, "init_image": LARGE, "steps": 0}).encode()),
        ("/sdapi/v1/txt2img", json.dumps({"script_args": [[1] * 99] * 900, "steps": "x"}).encode()),
        ("/v1/prompts/tokens", b"{" + b",".join(b'"%d":1' % number for number in range(90_000)) + b"}"),
    ]
    headers = {"Authorization": f"Bearer {tokens[0]}", "Content-Type": "application/json"}
    app = create_app(farm)
    turns: list[float] = []

    async def tick() -> None:
        while True:
            # Of the loop's own thread: how long other processes make it wait is not the api's affair.
            began = time.thread_time()
            await asyncio.sleep(0.005)
            turns.append(time.thread_time() - began)

    async def run() -> None:
        transport = ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://farm", headers=headers) as client,
        ):
            await client.get("/v1/queue")  # the first request completes the application
            ticking = asyncio.create_task(tick())
            for path, body in wanted:
                refusal = await client.post(path, content=body)
                assert refusal.status_code in {400, 422}, refusal.text[:500]
            assert (await client.get("/openapi.json")).status_code == 200
            ticking.cancel()

    asyncio.run(run())
    assert max(turns) < SLOW_S


def finished(db: Database, storage: Storage, file: bytes, *, images: int = 1) -> UUID:
    """End the next job with pictures that are all the same file."""
    taken = claimed(db)
    key = image_key(taken.job_id, taken.attempt, 0)
    storage.put(key, file, content_type="image/png")
    about = "image/png", 64, 64, len(file), hashlib.sha256(file).hexdigest()
    with db.transaction() as session:
        assert lifecycle.succeed(session, taken, [FinishedImage(index, index, key, *about) for index in range(images)])
    return taken.job_id


def test_pictures_on_their_way_to_one_key_leave_memory_for_others(
    farm: Settings, tokens: list[str], db: Database, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_answers, "PATIENCE_S", 0.05)
    app = create_app(farm)
    with TestClient(app) as client:
        done: list[tuple[UUID, dict[str, str]]] = []
        for token in tokens:
            headers = {"Authorization": f"Bearer {token}"}
            assert client.post("/v1/jobs", json=BODY, headers=headers).status_code == 202
            done.append((finished(db, storage, png("red")), headers))
        owner = row(db, done[0][0]).owner
        take = partial(app.state.desk.answers.take, owner, ANSWERS_BYTES // 2, patience_s=0)
        client.portal.call(take)  # type: ignore[union-attr]  # entered, it has one
        for job_id, headers in done:
            for what in ("?inline=true", "/thumbnail"):
                answer = client.get(f"/v1/jobs/{job_id}/images/0{what}", headers=headers)
                if headers is done[0][1]:
                    problem(answer, 503, "too_busy")
                    assert answer.headers["retry-after"]
                else:
                    assert answer.status_code == 200
                    assert int(answer.headers["content-length"]) == len(answer.content)


def test_an_answer_of_many_large_pictures_is_never_whole_in_memory(
    farm: Settings, tokens: list[str], db: Database, storage: Storage
) -> None:
    images, body = 16, json.dumps({**BODY, "batch_size": 16, "do_not_save_grid": True}).encode()
    file = png("red", parameters="x") + b"\0" * MAX_BYTES
    headers = {"Authorization": f"Bearer {tokens[0]}"}
    with (
        serving(farm) as address,
        httpx.Client(base_url=address, headers=headers, timeout=LIMIT_S) as client,
        sending(address, "/sdapi/v1/txt2img", tokens[0], body) as call,
    ):
        assert until(lambda: client.get("/v1/jobs").json()["jobs"])
        finished(db, storage, file, images=images)
        tracemalloc.start()
        count, tail = 0, b""
        while not tail.endswith(b"\r\n0\r\n\r\n"):
            part = call.recv(2**16)
            assert part, "the answer broke off"
            count, tail = count + len(part), (tail + part)[-64:]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert count > images * len(file) * 4 / 3
    assert peak < 4 * len(file)
