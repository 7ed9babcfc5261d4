"""The native API over HTTP, on the real engines. No worker runs: its acts are done by hand."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from redis import Redis

from api.main import create_app
from shared import broker, jobs
from shared.db import Database
from shared.settings import Settings
from shared.storage import Storage, image_key
from tests.factories import DEMO
from tests.unit.test_submissions import BAD_FIELDS

BODY = {"prompt": "a red circle on a blue background", "width": 64, "height": 64, "steps": 4}


@pytest.fixture(scope="module")
def front(engines: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(engines), raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


@pytest.fixture
def client(front: TestClient, announced: str, redis: Redis) -> TestClient:
    assert announced == DEMO
    assert redis.dbsize() == 0
    return front


def problem(response: Any, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert (body["status"], body["code"]) == (status, code)
    assert body["detail"]
    return body


def queued(client: TestClient) -> int:
    return len(client.get("/v1/jobs").json()["jobs"])


def test_submit_stores_rings_and_answers(client: TestClient, redis: Redis) -> None:
    response = client.post("/v1/jobs", json=BODY)
    assert response.status_code == 202
    job = response.json()
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert job["state"] == "queued"
    assert job["params"]["checkpoint"] == DEMO
    assert job["seeds"] == [job["params"]["seed"]]
    assert job["progress"] == {"steps_done": 0, "steps_total": 4}
    assert client.get(f"/v1/jobs/{job['id']}").json() == job
    assert broker.waiting_doorbells(redis, DEMO) == 1


def test_a_finished_job_shows_its_images(client: TestClient, db: Database, storage: Storage) -> None:
    job_id = client.post("/v1/jobs", json={**BODY, "seed": 5}).json()["id"]
    with db.transaction() as session:
        claim = jobs.claim_next(session, DEMO, "w", lease_s=20)
    assert claim is not None
    problem(client.get(f"/v1/jobs/{job_id}/images/0"), 409, "images_not_ready")
    key = image_key(claim.job_id, claim.attempt, 0)
    storage.put(key, b"png bytes", content_type="image/png")
    finished = jobs.FinishedImage(0, 5, key, "image/png", 64, 64, 9, "ab")
    with db.transaction() as session:
        assert jobs.succeed(session, claim, [finished])
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert job["state"] == "succeeded"
    assert job["timings"]["render_s"] >= 0
    assert job["images"][0]["url"] == f"/v1/jobs/{job_id}/images/0"
    redirect = client.get(job["images"][0]["url"])
    assert redirect.status_code == 307
    download = httpx.get(redirect.headers["location"])
    assert (download.content, download.headers["content-type"]) == (b"png bytes", "image/png")
    problem(client.get(f"/v1/jobs/{job_id}/images/1"), 404, "image_not_found")
    problem(client.get(f"/v1/jobs/{job_id}/images/99"), 422, "invalid_request")


def test_cancel(client: TestClient) -> None:
    job_id = client.post("/v1/jobs", json=BODY).json()["id"]
    assert client.post(f"/v1/jobs/{job_id}/cancel").json()["state"] == "canceled"
    problem(client.post(f"/v1/jobs/{job_id}/cancel"), 409, "job_already_final")


def test_list_pages_and_filters(client: TestClient) -> None:
    ids = [client.post("/v1/jobs", json=BODY).json()["id"] for _ in range(5)]
    client.post(f"/v1/jobs/{ids[0]}/cancel")
    first = client.get("/v1/jobs", params={"limit": 3}).json()
    second = client.get("/v1/jobs", params={"limit": 3, "cursor": first["next_cursor"]}).json()
    assert [job["id"] for job in first["jobs"] + second["jobs"]] == ids[::-1]
    assert second["next_cursor"] is None
    canceled = client.get("/v1/jobs", params={"state": "canceled"}).json()["jobs"]
    assert [job["id"] for job in canceled] == [ids[0]]
    assert client.get("/v1/jobs", params={"checkpoint": "other"}).json()["jobs"] == []


@pytest.mark.parametrize("query", ["checkpoint=%00", "limit=0", "limit=x", "state=x", "checkpoint=" + "x" * 101])
def test_a_bad_filter_is_refused(client: TestClient, query: str) -> None:
    problem(client.get(f"/v1/jobs?{query}"), 422, "invalid_request")


@pytest.mark.parametrize("query", ["checkpoint=%ff%fe", "checkpoint=%C3%A9", "checkpoint='%3B--", "nonsense=1"])
def test_a_filter_that_matches_nothing_is_no_error(client: TestClient, query: str) -> None:
    assert client.get(f"/v1/jobs?{query}").json() == {"jobs": [], "next_cursor": None}


@pytest.mark.parametrize("cursor", ["\0", "x", "!!!!", "é", "AAAA", "A" * 64])
def test_a_foreign_cursor_is_refused(client: TestClient, cursor: str) -> None:
    problem(client.get("/v1/jobs", params={"cursor": cursor}), 422, "bad_cursor")


@pytest.mark.parametrize("job_id", [str(uuid.uuid4()), "nonsense", "0", "%00", "a" * 3000])
@pytest.mark.parametrize(("method", "tail"), [("GET", ""), ("POST", "/cancel"), ("GET", "/images/0")])
def test_a_job_that_never_existed(client: TestClient, job_id: str, method: str, tail: str) -> None:
    problem(client.request(method, f"/v1/jobs/{job_id}{tail}"), 404, "job_not_found")


@pytest.mark.parametrize(("body", "field"), BAD_FIELDS)
def test_bad_fields_queue_nothing(client: TestClient, body: dict[str, Any], field: str) -> None:
    # As JavaScript or Python would write it: NaN, Infinity and escaped surrogates included.
    response = client.post("/v1/jobs", content=json.dumps(body), headers={"content-type": "application/json"})
    refused = problem(response, 422, "invalid_request")
    assert field in {error["field"] for error in refused["errors"]}
    assert queued(client) == 0


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 422),
        (b"null", 422),
        (b"[]", 422),
        (b'"x"', 422),
        (b"{", 400),
        (b"{'prompt': 1}", 400),
        (b'{"prompt": "\xff\xfe"}', 400),
        (b"\x00\x01", 400),
        (b"[" * 100_000, 400),
    ],
)
def test_bad_bodies_queue_nothing(client: TestClient, content: bytes, status: int) -> None:
    response = client.post("/v1/jobs", content=content, headers={"content-type": "application/json"})
    problem(response, status, "malformed_body" if status == 400 else "invalid_request")
    assert queued(client) == 0


def test_an_announced_oversize_body_is_refused(client: TestClient) -> None:
    response = client.post("/v1/jobs", content=b"x" * 2_000_000, headers={"content-type": "application/json"})
    problem(response, 413, "body_too_large")


def test_an_unannounced_oversize_body_is_refused(client: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * 50_000

    response = client.post("/v1/jobs", content=chunks(), headers={"content-type": "application/json"})
    problem(response, 413, "body_too_large")


def test_an_unknown_checkpoint_is_refused_with_the_known(client: TestClient) -> None:
    refused = problem(client.post("/v1/jobs", json={**BODY, "checkpoint": "nope"}), 422, "unknown_checkpoint")
    assert DEMO in refused["detail"]
    assert queued(client) == 0


def test_an_impossible_pair_is_refused_with_the_possible(client: TestClient) -> None:
    response = client.post("/v1/jobs", json={**BODY, "sampler": "euler_a", "schedule": "karras"})
    assert "possible: uniform" in problem(response, 422, "invalid_request")["detail"]


def test_unknown_routes_and_methods_are_problems(client: TestClient) -> None:
    problem(client.get("/v1/nothing"), 404, "not_found")
    problem(client.delete("/v1/jobs"), 405, "method_not_allowed")


def test_choices(client: TestClient) -> None:
    (checkpoint,) = client.get("/v1/checkpoints").json()["checkpoints"]
    assert (checkpoint["name"], checkpoint["ready_workers"], checkpoint["slots"]) == (DEMO, 1, 4)
    samplers = client.get("/v1/samplers").json()["samplers"]
    assert {"name": "dpmpp_2m", "schedules": ["karras", "uniform"]} in samplers


def test_health(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json()["status"] == "ready"


def test_the_docs_need_no_network(client: TestClient) -> None:
    page = client.get("/docs").text
    assert "https://" not in page
    schema = client.get("/openapi.json").json()
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    assert schema["components"]["schemas"]["Submission"]["examples"]
    assert "application/problem+json" in schema["paths"]["/v1/jobs"]["post"]["responses"]["422"]["content"]


DOWN = "127.0.0.1:1"  # nothing listens on port 1


def test_a_dead_database_is_503_with_retry_after(settings: Settings) -> None:
    app = create_app(
        settings.model_copy(update={"database_url": type(settings.database_url)(f"postgresql://u:p@{DOWN}/d")})
    )
    with TestClient(app, raise_server_exceptions=False) as client:
        refused = client.post("/v1/jobs", json=BODY)
        problem(refused, 503, "database_unavailable")
        assert int(refused.headers["retry-after"]) > 0
        ready = client.get("/readyz")
        assert ready.status_code == 503
        down = {name: one["ok"] for name, one in ready.json()["dependencies"].items()}
        assert down == {"postgres": False, "redis": True, "storage": True}
        assert client.get("/healthz").status_code == 200


@pytest.mark.usefixtures("announced")
def test_a_dead_redis_does_not_stop_submits(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"redis_url": type(settings.redis_url)(f"redis://{DOWN}/0")}))
    with TestClient(app, raise_server_exceptions=False) as client:
        accepted = client.post("/v1/jobs", json=BODY)
        assert accepted.status_code == 202
        assert client.post(f"/v1/jobs/{accepted.json()['id']}/cancel").json()["state"] == "canceled"
        assert client.get("/readyz").json()["dependencies"]["redis"]["ok"] is False


@pytest.mark.usefixtures("announced")
def test_a_dead_storage_is_named(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"s3_endpoint_url": f"http://{DOWN}"}))
    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.get("/readyz").json()["dependencies"]["storage"]["ok"] is False
