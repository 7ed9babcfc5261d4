"""Pictures that clients bring by themselves, straight to the storage or through the api, and name in jobs."""

from datetime import timedelta
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from api.main import create_app
from shared.errors import ObjectMissing
from shared.infra.db import Database
from shared.infra.storage import Storage, upload_key
from shared.infra.tables import UploadRow
from shared.jobs import uploads
from shared.settings import Settings
from tests.support.answers import post_job, problem
from tests.support.factories import BODY, png
from worker.courier import maintenance

PICTURE = png("#ff0000")


def announce(client: TestClient, size_bytes: int = len(PICTURE)) -> dict[str, Any]:
    answer = client.post("/v1/uploads", json={"size_bytes": size_bytes})
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    return body


def brought(client: TestClient, data: bytes = PICTURE) -> str:
    """Announce a file and PUT it to where the answer says."""
    upload = announce(client, len(data))
    answer = httpx.put(upload["upload_url"], content=data, timeout=60)
    assert answer.status_code == 200, answer.text
    return str(upload["id"])


def test_an_upload_is_named_in_as_many_jobs_as_wanted(client: TestClient, storage: Storage) -> None:
    upload_id = brought(client)
    made = [post_job(client, init_image=upload_id, mask_image=upload_id).json() for _ in range(2)]
    assert {job["params"]["init_image"] for job in made} == {made[0]["params"]["init_image"]}
    assert made[0]["params"]["init_image"].startswith("inputs/")
    assert storage.get(made[0]["params"]["init_image"]).startswith(b"\x89PNG")


def test_a_batch_receives_it_once(client: TestClient) -> None:
    upload_id = brought(client)
    template = {**BODY, "init_image": upload_id}
    answer = client.post("/v1/batches", json={"template": template, "grid": {"strength": [0.3, 0.8]}})
    assert answer.json()["total"] == 2


def test_the_storage_takes_what_was_announced_and_no_more(client: TestClient) -> None:
    upload = announce(client, 10)
    assert httpx.put(upload["upload_url"], content=b"x" * 11, timeout=60).status_code == 403
    problem(post_job(client, init_image=upload["id"]), 422, "invalid_request")


def test_what_has_not_come_yet_is_told(client: TestClient) -> None:
    told = problem(post_job(client, init_image=announce(client)["id"]), 422, "invalid_request")
    assert "PUT it to its upload_url" in told["detail"]


def test_what_is_no_picture_is_refused(client: TestClient) -> None:
    problem(post_job(client, init_image=brought(client, b"not a picture")), 422, "bad_picture")


def test_unknown_ids_and_those_past_their_time(client: TestClient, db: Database, storage: Storage) -> None:
    problem(post_job(client, init_image="6f1f0f5e-7f54-4a0b-9f0e-2f6d7c1f4b11"), 404, "upload_not_found")
    upload_id = brought(client)
    with db.transaction() as session:
        session.execute(update(UploadRow).values(created_at=UploadRow.created_at - uploads.KEPT - timedelta(seconds=1)))
    problem(post_job(client, init_image=upload_id), 404, "upload_not_found")
    assert maintenance.sweep_uploads(db, storage) == 1
    with pytest.raises(ObjectMissing):
        storage.get(upload_key(upload_id))  # type: ignore[arg-type]
    assert maintenance.sweep_uploads(db, storage) == 0


@pytest.mark.usefixtures("announced")
def test_where_clients_cannot_reach_the_storage_the_api_takes_it(engines: Settings) -> None:
    hidden = engines.model_copy(update={"image_delivery": "proxy"})
    with TestClient(create_app(hidden)) as proxied:
        upload = announce(proxied)
        assert upload["upload_url"] == f"/v1/uploads/{upload['id']}/content"
        problem(proxied.put(upload["upload_url"], content=PICTURE + b"more"), 422, "invalid_request")
        assert proxied.put(upload["upload_url"], content=PICTURE).status_code == 204
        assert post_job(proxied, init_image=upload["id"]).status_code == 202


@pytest.mark.parametrize("size_bytes", [0, -1, 1.5, "10", None, 10**12])
def test_impossible_sizes(client: TestClient, size_bytes: Any) -> None:
    problem(client.post("/v1/uploads", json={"size_bytes": size_bytes}), 422, "invalid_request")


def test_an_owner_has_so_many(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_KEPT", 1)
    announce(client)
    problem(client.post("/v1/uploads", json={"size_bytes": 1}), 429, "too_many_uploads")


@pytest.mark.parametrize("upload_id", ["nonsense", "6f1f0f5e-7f54-4a0b-9f0e-2f6d7c1f4b11"])
def test_nothing_is_taken_for_what_was_not_announced(client: TestClient, upload_id: str) -> None:
    problem(client.put(f"/v1/uploads/{upload_id}/content", content=b"x"), 404, "upload_not_found")
