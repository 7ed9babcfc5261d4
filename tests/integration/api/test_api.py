"""The native API over HTTP, on the real engines. No worker runs: its acts are done by hand."""

import base64
import io
import json
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from redis import Redis
from sqlalchemy import text

from api.main import create_app
from shared.files.weights import Kind
from shared.infra import broker, previews
from shared.infra.db import Database
from shared.infra.storage import Storage, image_key
from shared.infra.tables import WeightsRow
from shared.jobs import lifecycle
from shared.settings import Settings
from tests.support.answers import problem
from tests.support.bad_fields import BAD_FIELDS
from tests.support.factories import BODY, DEMO


@pytest.fixture(scope="module")
def front(engines: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(engines), raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


@pytest.fixture
def client(front: TestClient, announced: str, redis: Redis) -> TestClient:
    assert announced == DEMO
    assert redis.ping()
    return front


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
    assert {**client.get(f"/v1/jobs/{job['id']}").json(), "outlook": None} == job
    assert broker.waiting_doorbells(redis, DEMO) == 1


def test_a_finished_job_shows_its_images(client: TestClient, db: Database, storage: Storage) -> None:
    job_id = client.post("/v1/jobs", json={**BODY, "seed": 5}).json()["id"]
    with db.transaction() as session:
        claim = lifecycle.claim_next(session, DEMO, "w", lease_s=20)
    assert claim is not None
    problem(client.get(f"/v1/jobs/{job_id}/images/0"), 409, "images_not_ready")
    key = image_key(claim.job_id, claim.attempt, 0)
    storage.put(key, b"png bytes", content_type="image/png")
    finished = lifecycle.FinishedImage(0, 5, key, "image/png", 64, 64, 9, "ab")
    with db.transaction() as session:
        assert lifecycle.succeed(session, claim, [finished])
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert job["state"] == "succeeded"
    assert job["timings"]["render_s"] >= 0
    assert job["images"][0]["url"] == f"/v1/jobs/{job_id}/images/0"
    redirect = client.get(job["images"][0]["url"])
    assert redirect.status_code == 307
    download = httpx.get(redirect.headers["location"], timeout=60)
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


@pytest.mark.parametrize("job_id", ["0198c0de-0000-7000-8000-000000000001", "nonsense", "0", "%00", "a" * 3000])
@pytest.mark.parametrize(("method", "tail"), [("GET", ""), ("POST", "/cancel"), ("GET", "/images/0")])
def test_a_job_that_never_existed(client: TestClient, job_id: str, method: str, tail: str) -> None:
    problem(client.request(method, f"/v1/jobs/{job_id}{tail}"), 404, "job_not_found")


@pytest.mark.parametrize(("body", "field"), BAD_FIELDS)
def test_bad_fields_queue_nothing(client: TestClient, body: dict[str, Any], field: str) -> None:
    # As JavaScript or Python would write it: NaN, Infinity and escaped surrogates included.
    response = client.post("/v1/jobs", content=json.dumps(body), headers={"content-type": "application/json"})
    refused = problem(response, 422, "invalid_request")
    assert field in {error["field"].split(".")[0] for error in refused["errors"]}
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
    response = client.post("/v1/jobs", content=b"x" * 34_000_000, headers={"content-type": "application/json"})
    problem(response, 413, "body_too_large")


def test_an_unannounced_oversize_body_is_refused(client: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * 1_000_000

    response = client.post("/v1/jobs", content=chunks(), headers={"content-type": "application/json"})
    problem(response, 413, "body_too_large")


def test_an_unknown_checkpoint_is_refused_with_the_known(client: TestClient) -> None:
    refused = problem(client.post("/v1/jobs", json={**BODY, "checkpoint": "nope"}), 422, "unknown_checkpoint")
    assert DEMO in refused["detail"]
    assert queued(client) == 0


def test_an_impossible_pair_is_refused_with_the_possible(client: TestClient) -> None:
    response = client.post("/v1/jobs", json={**BODY, "sampler": "plms", "schedule": "karras"})
    assert "possible: uniform" in problem(response, 422, "invalid_request")["detail"]


def test_unknown_routes_and_methods_are_problems(client: TestClient) -> None:
    problem(client.get("/v1/nothing"), 404, "not_found")
    problem(client.delete("/v1/jobs"), 405, "method_not_allowed")


def test_choices(client: TestClient) -> None:
    (checkpoint,) = client.get("/v1/checkpoints").json()["checkpoints"]
    assert (checkpoint["name"], checkpoint["ready_workers"], checkpoint["slots"]) == (DEMO, 1, 4)
    samplers = client.get("/v1/samplers").json()["samplers"]
    assert {"name": "ddim", "label": "DDIM", "schedules": ["uniform", "sgm_uniform"]} in samplers


def test_health(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json()["status"] == "ready"


def test_the_docs_need_no_network(client: TestClient) -> None:
    page = client.get("/docs").text
    assert "https://" not in page
    schema = client.get("/openapi.json").json()
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    assert schema["components"]["schemas"]["Submission"]["examples"]
    refused = schema["paths"]["/v1/jobs"]["post"]["responses"]["422"]
    assert refused == {"$ref": "#/components/responses/Problem422"}
    assert "application/problem+json" in schema["components"]["responses"]["Problem422"]["content"]


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


def picture(color: str = "red", size: tuple[int, int] = (80, 64)) -> str:
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, format="PNG")
    return base64.b64encode(out.getvalue()).decode()


def test_pictures_are_stored_before_the_job_is(client: TestClient, storage: Storage) -> None:
    body = {
        "prompt": "x",
        "init_image": "data:image/png;base64," + picture(),
        "mask_image": picture("white"),
        "steps": 10,
    }
    job = client.post("/v1/jobs", json=body).json()
    params = job["params"]
    assert (params["kind"], params["width"], params["height"], params["strength"]) == ("img2img", 80, 64, 0.75)
    assert job["progress"]["steps_total"] == 8
    stored = Image.open(io.BytesIO(storage.get(params["init_image"])))
    assert (stored.size, stored.getpixel((0, 0))) == ((80, 64), (255, 0, 0))
    assert params["mask_image"] != params["init_image"]
    again = client.post("/v1/jobs", json=body).json()
    assert again["params"]["init_image"] == params["init_image"]


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("ftp://example.com/a.png", "only http and https"),
        ("not base64!", "not valid base64"),
        (base64.b64encode(b"GIF89a, or so it says").decode(), "init_image"),
        (base64.b64encode(b"<svg/>").decode(), "not a picture"),
    ],
)
def test_what_is_no_picture_queues_nothing(client: TestClient, init: str, message: str) -> None:
    refused = problem(client.post("/v1/jobs", json={"prompt": "x", "init_image": init}), 422, "bad_picture")
    assert message in refused["detail"]
    assert queued(client) == 0


@pytest.fixture
def stocked(client: TestClient, db: Database) -> TestClient:
    """A fleet whose worker has a LoRA with an alias, and a VAE."""
    with db.transaction() as session:
        for kind, name, alias in ((Kind.LORA, "ink-v2", "Ink"), (Kind.LORA, "gold", None), (Kind.VAE, "soft", None)):
            session.add(WeightsRow(kind=kind, name=name, alias=alias, size_bytes=7))
    return client


def test_weights_are_listed_by_kind(stocked: TestClient) -> None:
    listed = stocked.get("/v1/loras").json()["weights"]
    assert [(one["name"], one["alias"]) for one in listed] == [("gold", None), ("ink-v2", "Ink")]
    assert [one["name"] for one in stocked.get("/v1/vaes").json()["weights"]] == ["soft"]
    assert stocked.get("/v1/embeddings").json()["weights"] == []


def test_loras_are_found_by_name_or_alias_in_any_case(stocked: TestClient) -> None:
    body = {**BODY, "prompt": "a cat <lora:INK:0.5>", "loras": [{"name": "gold"}], "vae": "Soft"}
    params = stocked.post("/v1/jobs", json=body).json()["params"]
    assert [(lora["name"], lora["weight"]) for lora in params["loras"]] == [("ink-v2", 0.5), ("gold", 1.0)]
    assert params["vae"] == "soft"


@pytest.mark.parametrize(
    "changes",
    [{"prompt": "a <lora:golt:1>"}, {"loras": [{"name": "golt"}]}, {"vae": "golt"}, {"loras": [{"name": "soft"}]}],
)
def test_unknown_weights_are_refused_with_the_close(stocked: TestClient, changes: dict[str, Any]) -> None:
    refused = problem(stocked.post("/v1/jobs", json={**BODY, **changes}), 422, "unknown_weights")
    assert "Known:" in refused["detail"]
    assert queued(stocked) == 0


def test_weights_that_no_live_worker_has_seen_lately_are_gone(stocked: TestClient, db: Database) -> None:
    with db.transaction() as session:
        session.execute(text("UPDATE weights SET seen_at = now() - interval '2 minutes' WHERE name = 'gold'"))
    assert [one["name"] for one in stocked.get("/v1/loras").json()["weights"]] == ["ink-v2"]
    with db.transaction() as session:
        session.execute(text("DELETE FROM workers"))
    assert len(stocked.get("/v1/loras").json()["weights"]) == 2  # nobody is left who could know better


def test_a_preview_is_shown_while_there_is_one(client: TestClient, redis: Redis) -> None:
    job_id = client.post("/v1/jobs", json=BODY).json()["id"]
    assert client.get(f"/v1/jobs/{job_id}/images/0/preview").status_code == 204
    previews.put(redis, uuid.UUID(job_id), 0, b"\xff\xd8 a picture")
    shown = client.get(f"/v1/jobs/{job_id}/images/0/preview")
    assert (shown.content, shown.headers["content-type"]) == (b"\xff\xd8 a picture", "image/jpeg")
