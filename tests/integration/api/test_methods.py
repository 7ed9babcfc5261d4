"""HEAD wherever GET is, and what a path says of its methods."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from redis import Redis

from api.main import create_app
from shared.settings import Settings
from tests.support.answers import post_job
from tests.support.factories import DEMO
from tests.support.workshop import serving

METHODS = {"get", "post", "put", "patch", "delete", "head", "options"}


@pytest.fixture(scope="module")
def address(engines: Settings) -> Iterator[str]:
    with serving(engines) as address:
        yield address


@pytest.fixture
def http(address: str, announced: str, redis: Redis) -> Iterator[httpx.Client]:
    assert announced == DEMO
    assert redis.ping()
    with httpx.Client(base_url=address) as http:
        yield http


def operations(client: Any) -> Iterator[tuple[str, str]]:
    for path, item in client.get("/openapi.json").json()["paths"].items():
        yield from ((verb, path) for verb in item if verb in METHODS)


def test_head_is_get_without_the_body(http: httpx.Client) -> None:
    job = post_job(http).json()["id"]
    ids = {"job_id": job, "index": "0", "worker_id": "w", "task_id": "t", "name": "n"}
    paths = [path for verb, path in operations(http) if verb == "get"] + [
        "/",
        "/docs",
        "/openapi.json",
        "/web/js/main.js",
    ]
    assert len(paths) > 40
    for path in paths:
        filled = path
        for name, value in ids.items():
            filled = filled.replace(f"{{{name}}}", value)
        head = http.head(filled)
        if path.endswith("{job_id}/events"):
            assert head.headers["content-type"].startswith("text/event-stream")
        elif path != "/metrics":
            got = http.get(filled)
            wanted = (got.status_code, got.headers.get("content-type"))
            assert (head.status_code, head.headers.get("content-type")) == wanted, path
        assert head.content == b"", path
    assert http.head("/none").status_code == 404
    for verb in ("get", "post"):
        assert "head" not in http.get("/openapi.json").json()["paths"]["/v1/jobs"], verb


def test_a_head_opens_no_stream(settings: Settings, announced: str) -> None:
    assert announced == DEMO
    application = create_app(settings)
    with TestClient(application) as client:
        job = post_job(client).json()["id"]
        for _ in range(3):
            assert client.head(f"/v1/jobs/{job}/events").status_code == 200
        assert not application.state.desk.streams._open


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/jobs", "GET, POST, HEAD, OPTIONS"),
        ("/v1/jobs/019a96d0-5b1e-7c3f-9d2a-3f1c5d7e9b01", "GET, PUT, DELETE, HEAD, OPTIONS"),
        ("/v1/jobs/x/cancel", "POST, OPTIONS"),
        ("/sdapi/v1/options", "GET, POST, HEAD, OPTIONS"),
        ("/healthz", "GET, HEAD, OPTIONS"),
        ("/web/js/main.js", "GET, HEAD, OPTIONS"),
    ],
)
def test_a_path_tells_its_methods(http: httpx.Client, path: str, methods: str) -> None:
    refused = http.request("TRACE", path)
    assert (refused.status_code, refused.headers["allow"]) == (405, methods)
    asked = http.options(path)
    assert (asked.status_code, asked.headers["allow"], asked.content) == (204, methods, b"")
    if "GET" not in methods:
        assert (http.head(path).status_code, http.head(path).headers["allow"]) == (405, methods)


def test_a_path_that_is_not_there_has_no_methods(http: httpx.Client) -> None:
    assert http.options("/none").status_code == 404
