"""What comes back from the storage is what its worker put there, or nobody gets to see it."""

import hashlib
import io
import zipfile
from collections.abc import Iterator
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from redis import Redis

from api.main import create_app
from shared.infra.db import Database
from shared.infra.storage import Storage, image_key
from shared.jobs import lifecycle
from shared.jobs.lifecycle import FinishedImage
from shared.settings import Settings
from tests.support.answers import problem
from tests.support.bad_store import BadStore, bad_store
from tests.support.factories import BODY, DEMO, png
from tests.support.jobs import claimed, submit

ALWAYS = 10**6


@pytest.fixture
def store(settings: Settings) -> Iterator[BadStore]:
    with bad_store(settings) as store:
        yield store


@pytest.fixture
def client(store: BadStore, announced: str, redis: Redis) -> Iterator[TestClient]:
    assert announced == DEMO
    assert redis.ping()
    with TestClient(create_app(store.settings)) as client:
        yield client


def succeeded(db: Database, settings: Settings, color: str = "#ff0000") -> UUID:
    """End the job that is next by a picture of one colour."""
    taken, data = claimed(db), png(color)
    key = image_key(taken.job_id, taken.attempt, 0)
    Storage(settings).put(key, data, content_type="image/png")
    image = FinishedImage(0, 7, key, "image/png", 64, 64, len(data), hashlib.sha256(data).hexdigest())
    with db.transaction() as session:
        assert lifecycle.succeed(session, taken, [image])
    return taken.job_id


@pytest.fixture
def job_id(db: Database, settings: Settings) -> UUID:
    submit(db)
    return succeeded(db, settings)


@pytest.mark.parametrize("what", ["?inline=true", "/thumbnail"])
def test_a_picture_that_comes_damaged_once_is_asked_for_again(
    client: TestClient, store: BadStore, job_id: UUID, what: str
) -> None:
    store.cuts_gets = 1
    answer = client.get(f"/v1/jobs/{job_id}/images/0{what}")
    assert (answer.status_code, store.cuts_gets) == (200, 0)
    with Image.open(io.BytesIO(answer.content)) as picture:
        red, _green, blue = picture.convert("RGB").getpixel((9, 9))  # type: ignore[misc]
    assert red > 200 > 50 > blue


@pytest.mark.parametrize("what", ["?inline=true", "/thumbnail"])
def test_a_damaged_picture_is_neither_served_nor_cached(
    client: TestClient, store: BadStore, job_id: UUID, what: str
) -> None:
    store.cuts_gets = ALWAYS
    answer = client.get(f"/v1/jobs/{job_id}/images/0{what}")
    problem(answer, 503, "object_damaged")
    assert answer.headers["retry-after"]
    assert "etag" not in answer.headers
    assert "max-age" not in answer.headers.get("cache-control", "")


def test_one_damaged_picture_spoils_neither_sheet_nor_zip(client: TestClient, db: Database, settings: Settings) -> None:
    batch_id = client.post("/v1/batches", json={"jobs": [BODY] * 3}).json()["id"]
    whole, damaged, lost = (succeeded(db, settings, color) for color in ("#ff0000", "#00ff00", "#0000ff"))
    storage = Storage(settings)
    before = client.get(f"/v1/batches/{batch_id}/sheet").content
    storage.put(image_key(damaged, 1, 0), png("#00ff00")[:-9], content_type="image/png")
    storage.delete(image_key(lost, 1, 0))
    sheet = client.get(f"/v1/batches/{batch_id}/sheet")
    assert (sheet.status_code, sheet.content == before) == (200, False)
    answer = client.get(f"/v1/batches/{batch_id}/images.zip")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["0000-0-7.png", "0001-0-7.png.damaged.txt", "0002-0-7.png.lost.txt", "jobs.json"]
        assert archive.read("0000-0-7.png") == storage.get(image_key(whole, 1, 0))
        assert str(damaged) in archive.read("0001-0-7.png.damaged.txt").decode()


@pytest.mark.parametrize("is_deleted", [True, False], ids=["gone", "damaged"])
def test_a_success_whose_picture_is_lost_is_rendered_again(
    client: TestClient, settings: Settings, job_id: UUID, is_deleted: bool
) -> None:
    problem(client.post(f"/v1/jobs/{job_id}/retry"), 409, "nothing_to_retry")
    storage, key = Storage(settings), image_key(job_id, 1, 0)
    kept = storage.get(key)
    storage.delete(key)
    if not is_deleted:
        storage.put(key, kept[:-1], content_type="image/png")
    else:
        problem(client.get(f"/v1/jobs/{job_id}/images/0?inline=true"), 410, "image_lost")
    again = client.post(f"/v1/jobs/{job_id}/retry")
    assert (again.status_code, again.json()["retry_of"]) == (202, str(job_id))
    assert again.json()["params"] == client.get(f"/v1/jobs/{job_id}").json()["params"]
    storage.put(key, kept, content_type="image/png")
    assert client.post(f"/v1/jobs/{job_id}/retry").json()["id"] == again.json()["id"]
    assert client.get(f"/v1/jobs/{job_id}").json()["state"] == "succeeded"
