"""Many jobs at once: stored together, told of together, canceled together, and never lost count of."""

import hashlib
import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from redis import Redis
from sqlalchemy import func, select, update

from api.main import create_app
from shared.errors import EngineStopped, RenderFailed
from shared.infra import broker
from shared.infra.db import Database
from shared.infra.storage import Storage, image_key
from shared.infra.tables import BatchRow, DeliveryRow, EventRow, JobRow, KeyRow
from shared.jobs import fair_queue, lifecycle, removal, rescue
from shared.jobs.lifecycle import Attempt, FinishedImage
from shared.jobs.submits import NewJob
from shared.settings import Settings
from shared.vocabulary.states import JobState
from tests.support.answers import problem
from tests.support.factories import BODY, DEMO, params, png
from tests.support.jobs import claimed

GRID = {"template": BODY, "grid": {"guidance_scale": [5.0, 9.0], "steps": [1, 2]}}


def submit_batch(client: TestClient, **changes: Any) -> str:
    answer = client.post("/v1/batches", json={**GRID, **changes})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def succeed(db: Database, storage: Storage, color: str = "#ff0000") -> UUID:
    taken = claimed(db)
    key = image_key(taken.job_id, taken.attempt, 0)
    data = png(color)
    storage.put(key, data, content_type="image/png")
    image = FinishedImage(0, 1, key, "image/png", 64, 64, len(data), hashlib.sha256(data).hexdigest())
    with db.transaction() as session:
        assert lifecycle.succeed(session, taken, [image])
    return taken.job_id


def shown(client: TestClient, batch_id: str) -> dict[str, Any]:
    body: dict[str, Any] = client.get(f"/v1/batches/{batch_id}").json()
    return body


def finished_events(db: Database) -> int:
    with db.transaction() as session:
        return session.scalar(select(func.count()).where(EventRow.type == "batch.finished")) or 0


def test_a_sweep_is_stored_whole_in_its_order(client: TestClient, redis: Redis) -> None:
    answer = client.post("/v1/batches", json={**GRID, "name": "a grid"})
    batch = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/batches/{batch['id']}")
    assert (batch["state"], batch["total"], batch["counts"]["queued"]) == ("unfinished", 4, 4)
    assert batch["progress"] == {"steps_done": 0, "steps_total": 6}
    listed = client.get(f"/v1/batches/{batch['id']}/jobs", params={"limit": 3}).json()
    rest = client.get(f"/v1/batches/{batch['id']}/jobs", params={"start": listed["next_start"]}).json()
    made = listed["jobs"] + rest["jobs"]
    cells = [(job["params"]["guidance_scale"], job["params"]["steps"]) for job in made]
    assert (cells, rest["next_start"]) == ([(5, 1), (5, 2), (9, 1), (9, 2)], None)
    assert {job["batch_id"] for job in made} == {batch["id"]}
    assert len({job["params"]["seed"] for job in made}) == 1
    assert broker.waiting_doorbells(redis, DEMO) == 4
    page = client.get("/v1/batches").json()
    assert ([one["name"] for one in page["batches"]], page["next_cursor"]) == (["a grid"], None)


def test_one_bad_job_refuses_all(client: TestClient, db: Database) -> None:
    bad = [BODY, {**BODY, "checkpoint": "nobody-has-it"}]
    problem(client.post("/v1/batches", json={"jobs": bad}), 422, "unknown_checkpoint")
    problem(client.post("/v1/batches", json={**GRID, "grid": {"steps": [1, 0]}}), 422, "invalid_request")
    with db.transaction() as session:
        assert session.scalar(select(func.count()).select_from(JobRow)) == 0
        assert session.scalar(select(func.count()).select_from(BatchRow)) == 0


def test_a_key_of_its_own_makes_a_repeated_batch_one(client: TestClient) -> None:
    headers = {"Idempotency-Key": "k"}
    first, again = (client.post("/v1/batches", json=GRID, headers=headers) for _ in range(2))
    assert first.json()["id"] == again.json()["id"]
    problem(client.post("/v1/batches", json={**GRID, "name": "x"}, headers=headers), 422, "idempotency_key_reused")
    problem(client.post("/v1/jobs", json=BODY, headers=headers), 422, "idempotency_key_reused")


def test_a_thousand_jobs_go_in_one_transaction(client: TestClient, db: Database) -> None:
    batch_id = submit_batch(client, grid={"steps": [*range(1, 51)], "seed": [*range(20)]})
    with db.transaction() as session:
        rows = session.scalars(select(JobRow).order_by(JobRow.batch_index)).all()
    assert len({row.created_at for row in rows}) == 1
    assert [row.batch_index for row in rows] == [*range(1000)]
    turns = [(row.virtual_start, row.virtual_finish) for row in rows]
    assert all(before[1] == pytest.approx(after[0]) for before, after in pairwise(turns))
    assert claimed(db).job_id == rows[0].id
    canceled = client.post(f"/v1/batches/{batch_id}/cancel").json()
    assert (canceled["state"], canceled["counts"]["canceled"]) == ("finished", 1000)


def test_it_finishes_with_its_last_job_however_that_ends(client: TestClient, db: Database, storage: Storage) -> None:
    batch_id = submit_batch(client)
    succeed(db, storage)
    with db.transaction() as session:
        assert lifecycle.fail(session, claim_in(session), RenderFailed("no")) is JobState.FAILED
    with db.transaction() as session:
        again = claim_in(session)
        assert lifecycle.fail(session, again, EngineStopped("gone")) is JobState.QUEUED  # has not ended
    assert shown(client, batch_id)["state"] == "unfinished"
    assert finished_events(db) == 0
    for _ in range(2):
        succeed(db, storage)
    batch = shown(client, batch_id)
    counts = {state: count for state, count in batch["counts"].items() if count}
    assert (batch["state"], counts) == ("finished", {"succeeded": 3, "failed": 1})
    assert batch["finished_at"] is not None
    assert finished_events(db) == 1


def claim_in(session: Any) -> lifecycle.Claim:
    taken = lifecycle.claim_next(session, DEMO, "w", lease_s=20)
    assert taken is not None
    return taken


def test_two_last_jobs_that_end_at_once_end_it_once(client: TestClient, db: Database) -> None:
    for _ in range(5):
        batch_id = submit_batch(client, grid={"steps": [*range(1, 9)]})
        claims = [claimed(db) for _ in range(8)]

        def end(taken: Attempt) -> None:
            with db.transaction() as session:
                assert lifecycle.fail(session, taken, RenderFailed("no")) is JobState.FAILED

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(end, claims))
        assert shown(client, batch_id)["state"] == "finished"
    assert finished_events(db) == 5


def test_expired_jobs_end_it_too(client: TestClient, db: Database) -> None:
    batch_id = submit_batch(client, template={**BODY, "expires_in": 1})
    with db.transaction() as session:
        session.execute(update(JobRow).values(expires_at=func.now()))
    with db.transaction() as session:
        assert len(rescue.expire(session)) == 4
    assert shown(client, batch_id)["counts"]["expired"] == 4
    assert finished_events(db) == 1


def test_cancel_ends_what_has_not_ended(client: TestClient, db: Database, storage: Storage) -> None:
    batch_id = submit_batch(client)
    succeed(db, storage)
    running = claimed(db)
    for _ in range(2):
        batch = client.post(f"/v1/batches/{batch_id}/cancel").json()
        assert (batch["state"], batch["counts"]["canceled"], batch["counts"]["succeeded"]) == ("finished", 3, 1)
    with db.transaction() as session:
        assert not lifecycle.succeed(session, running, [])
    assert finished_events(db) == 1


def test_its_webhook_hears_of_the_end_once(engines: Settings, client: TestClient, db: Database) -> None:
    url = "http://127.0.0.1:9/hook"
    problem(client.post("/v1/batches", json={**GRID, "webhook": {"url": url}}), 422, "url_blocked")
    with TestClient(create_app(engines.model_copy(update={"allow_private_urls": True}))) as open_:
        batch_id = submit_batch(open_, webhook={"url": url})
    client.post(f"/v1/batches/{batch_id}/cancel")
    with db.transaction() as session:
        delivery = session.scalars(select(DeliveryRow)).one()
        told = json.loads(delivery.event.body or "")
    assert (told["type"], told["data"]["id"], told["data"]["state"]) == ("batch.finished", batch_id, "finished")
    assert told["data"]["counts"]["canceled"] == 4
    [seen] = client.get("/v1/webhooks/deliveries").json()["deliveries"]
    assert (seen["type"], seen["batch_id"], seen["job_id"]) == ("batch.finished", batch_id, None)
    told_of = [one for one in client.get("/v1/events").json()["events"] if one["type"] == "batch.finished"]
    assert [(one["id"], one["batch_id"], one["job_id"]) for one in told_of] == [(seen["webhook_id"], batch_id, None)]


def test_a_job_cannot_ask_for_a_batchs_event(client: TestClient) -> None:
    wanted = {**BODY, "webhook": {"url": "https://example.com", "events": ["batch.finished"]}}
    problem(client.post("/v1/jobs", json=wanted), 422, "invalid_request")


def test_a_batch_takes_its_fair_place(client: TestClient, db: Database) -> None:
    """Another owner's job that comes after a batch goes second."""
    submit_batch(client)
    with db.transaction() as session:
        other = lifecycle.submit_all(session, [NewJob(params=params(), max_attempts=1, owner="other")])[0].id
    claims = [claimed(db).job_id for _ in range(2)]
    assert other in claims


def test_a_limited_keys_batch_is_parked_beyond_its_limit(db: Database) -> None:
    with db.transaction() as session:
        about = {"name": "n", "prefix": "p", "hash": b"h", "scopes": ["submit"]}
        session.add(KeyRow(id="limited", max_running=2, **about))
        session.flush()
        order = NewJob(params=params(), max_attempts=1, owner="limited")
        first = lifecycle.submit_all(session, [order])
        rest = lifecycle.submit_all(session, [order] * 3)
    assert [row.parked for row in [*first, *rest]] == [False, False, True, True]
    with db.transaction() as session:
        assert fair_queue.unpark(session) == 0


def test_a_queue_with_too_little_room_takes_none_of_it(engines: Settings, client: TestClient) -> None:
    with TestClient(create_app(engines.model_copy(update={"max_queued": 3}))) as small:
        problem(small.post("/v1/batches", json=GRID), 503, "queue_full")
        assert submit_batch(small, grid={"steps": [1, 2, 3]})
    assert len(client.get("/v1/batches").json()["batches"]) == 1


def test_the_sheet_and_the_zip(client: TestClient, db: Database, storage: Storage) -> None:
    batch_id = submit_batch(client)
    problem(client.get(f"/v1/batches/{batch_id}/images.zip"), 409, "images_not_ready")
    colors = ["#ff0000", "#00ff00", "#0000ff"]
    done = [succeed(db, storage, color) for color in colors]
    sheet = client.get(f"/v1/batches/{batch_id}/sheet")
    assert sheet.headers["content-type"] == "image/webp"
    with Image.open(io.BytesIO(sheet.content)) as picture:
        assert picture.width > picture.height  # the labels of the rows stand to their left
    answer = client.get(f"/v1/batches/{batch_id}/images.zip")
    assert answer.headers["content-disposition"] == f'attachment; filename="{batch_id}.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        *images, manifest = archive.namelist()
        assert [name.split("-")[0] for name in images] == ["0000", "0001", "0002"]
        assert [archive.read(name) for name in images] == [png(color) for color in colors]
        told = json.loads(archive.read(manifest))["jobs"]
    assert [job["id"] for job in told[:3]] == [str(job_id) for job_id in done]
    assert [job["state"] for job in told] == ["succeeded"] * 3 + ["queued"]


def test_a_deleted_job_leaves_its_place_on_the_sheet(client: TestClient, db: Database, storage: Storage) -> None:
    batch_id = submit_batch(client, grid={"steps": [1, 2, 3]})
    first, _, _ = (succeed(db, storage, color) for color in ("#ff0000", "#00ff00", "#0000ff"))
    whole = client.get(f"/v1/batches/{batch_id}/sheet").content
    assert client.delete(f"/v1/jobs/{first}").status_code == 204
    assert [job["batch_index"] for job in client.get(f"/v1/batches/{batch_id}/jobs").json()["jobs"]] == [1, 2]
    with (
        Image.open(io.BytesIO(whole)) as before,
        Image.open(io.BytesIO(client.get(f"/v1/batches/{batch_id}/sheet").content)) as now,
    ):
        assert now.size == before.size
        assert now.width > 2 * now.height  # one axis, side by side
        at = now.width * 5 // 6, now.height * 2 // 3
        assert now.convert("RGB").getpixel(at) == before.convert("RGB").getpixel(at)


def test_what_the_storage_has_lost_is_named_in_the_zip(client: TestClient, db: Database, storage: Storage) -> None:
    batch_id = submit_batch(client)
    first, second = succeed(db, storage), succeed(db, storage, "#00ff00")
    storage.delete(image_key(first, 1, 0))
    assert client.get(f"/v1/batches/{batch_id}/sheet").headers["content-type"] == "image/webp"
    answer = client.get(f"/v1/batches/{batch_id}/images.zip")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["0000-0-1.png.lost.txt", "0001-0-1.png", "jobs.json"]
        assert archive.read("0001-0-1.png") == storage.get(image_key(second, 1, 0))


def test_removed_jobs_are_told_and_an_empty_batch_goes(client: TestClient, db: Database) -> None:
    batch_id = submit_batch(client)
    client.post(f"/v1/batches/{batch_id}/cancel")
    with db.transaction() as session:
        rows = session.scalars(select(JobRow)).all()
        removal.remove(session, rows[:1])
    assert shown(client, batch_id)["removed"] == 1
    with db.transaction() as session:
        removal.remove(session, rows[1:])
    problem(client.get(f"/v1/batches/{batch_id}"), 404, "batch_not_found")


@pytest.mark.parametrize("what", ["", "/jobs", "/sheet", "/images.zip"])
def test_what_is_no_batch_is_not_found(client: TestClient, what: str) -> None:
    for batch_id in ("nonsense", "019a96d0-5b1e-7c3f-9d2a-3f1c5d7e9c01"):
        problem(client.get(f"/v1/batches/{batch_id}{what}"), 404, "batch_not_found")
