"""The stored pictures that jobs start from: shared by the jobs that name them, and gone a day after the last of those."""

import asyncio
import base64
import dataclasses
import io
import threading
from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from sqlalchemy import select, text, update
from sqlalchemy.dialects import postgresql

from api import large_answers
from api.limits.memory import Memory
from shared.errors import ObjectMissing, StorageUnavailable
from shared.infra.db import Database
from shared.infra.storage import Storage
from shared.infra.tables import InputRow
from shared.jobs import inputs
from tests.support.answers import accepted, post_job, problem
from tests.support.factories import png
from tests.support.waiting import LIMIT_S
from worker.courier import maintenance


def submit(client: TestClient, colour: str = "#ff0000", **more: Any) -> dict[str, Any]:
    return accepted(client, init_image=base64.b64encode(png(colour)).decode(), **more)


def remove(client: TestClient, job: dict[str, Any]) -> None:
    assert client.post(f"/v1/jobs/{job['id']}/cancel").status_code == 200
    assert client.delete(f"/v1/jobs/{job['id']}").status_code == 204


def a_day_later(db: Database) -> None:
    with db.transaction() as session:
        session.execute(update(InputRow).values(kept_until=InputRow.kept_until - inputs.KEPT - timedelta(seconds=1)))


def is_stored(storage: Storage, key: str) -> bool:
    try:
        return bool(storage.get(key))
    except ObjectMissing:
        return False


def test_a_picture_goes_a_day_after_its_last_job(client: TestClient, db: Database, storage: Storage) -> None:
    first, second = submit(client), submit(client)
    key = first["params"]["init_image"]
    assert second["params"]["init_image"] == key
    remove(client, first)
    a_day_later(db)
    assert maintenance.sweep_inputs(db, storage) == 0
    remove(client, second)
    assert maintenance.sweep_inputs(db, storage) == 0  # looked at, in use, a moment ago
    assert is_stored(storage, key)
    a_day_later(db)
    assert maintenance.sweep_inputs(db, storage) == 1
    assert not is_stored(storage, key)
    assert maintenance.sweep_inputs(db, storage) == 0


def test_masks_count_too(client: TestClient, db: Database, storage: Storage) -> None:
    job = submit(client, mask_image=base64.b64encode(png("#ffffff")).decode())
    a_day_later(db)
    assert maintenance.sweep_inputs(db, storage) == 0
    assert is_stored(storage, job["params"]["mask_image"])
    remove(client, job)
    a_day_later(db)
    assert maintenance.sweep_inputs(db, storage) == 2


def test_more_than_one_round_takes(
    client: TestClient, db: Database, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "JUDGED_AT_ONCE", 2)
    jobs = [submit(client, colour) for colour in ("#ff0000", "#00ff00", "#0000ff", "#ffff00", "#00ffff")]
    for job in jobs[1:]:
        remove(client, job)
    a_day_later(db)
    assert maintenance.sweep_inputs(db, storage) == 4
    assert is_stored(storage, jobs[0]["params"]["init_image"])


def test_a_storage_that_refuses_leaves_the_rows(
    client: TestClient, db: Database, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove(client, submit(client))
    a_day_later(db)
    with monkeypatch.context() as broken:
        broken.setattr(storage, "delete_all", _refuse)
        with pytest.raises(StorageUnavailable):
            maintenance.sweep_inputs(db, storage)
    assert maintenance.sweep_inputs(db, storage) == 1


def test_the_same_picture_sent_while_it_is_deleted_stays(
    client: TestClient, db: Database, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove(client, submit(client))
    a_day_later(db)
    again: list[dict[str, Any]] = []
    sender = threading.Thread(target=lambda: again.append(submit(client)))
    delete = storage.delete_all

    def meanwhile(keys: list[str]) -> None:
        sender.start()
        _until_someone_waits(db)
        delete(keys)

    with monkeypatch.context() as slow:
        slow.setattr(storage, "delete_all", meanwhile)
        assert maintenance.sweep_inputs(db, storage) == 1
    sender.join(LIMIT_S)
    assert is_stored(storage, again[0]["params"]["init_image"])
    a_day_later(db)
    assert maintenance.sweep_inputs(db, storage) == 0


def test_who_names_a_picture_is_found_by_index(db: Database) -> None:
    statement = select(InputRow.key).where(*inputs._is_unnamed())
    compiled = statement.compile(dialect=postgresql.dialect())
    with db.transaction() as session:
        session.execute(text("SET LOCAL enable_seqscan = off"))
        session.execute(text("SET LOCAL plan_cache_mode = force_generic_plan"))
        plan = "\n".join(session.execute(text(f"EXPLAIN {compiled}")).scalars())
    assert "jobs_of_init_image" in plan
    assert "jobs_of_mask_image" in plan


def _refuse(_keys: list[str]) -> None:
    raise StorageUnavailable("no")


def _until_someone_waits(db: Database) -> None:
    """Return once another connection waits for a lock."""
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    tick = threading.Event()
    for _ in range(int(LIMIT_S / 0.02)):
        with db.transaction() as session:
            if session.scalar(waiting):
                return
        tick.wait(0.02)
    raise AssertionError("nobody waits")


def test_an_owner_has_the_inputs_of_a_job(client: TestClient) -> None:
    job = submit(client, mask_image=base64.b64encode(png("#ffffff")).decode())
    answer = client.get(f"/v1/jobs/{job['id']}/inputs/init_image")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.headers["cache-control"].startswith("private")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["etag"].strip('"') in job["params"]["init_image"]
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert (picture.size, picture.getpixel((0, 0))) == ((64, 64), (255, 0, 0))
    mask = client.get(f"/v1/jobs/{job['id']}/inputs/mask_image").content
    with Image.open(io.BytesIO(mask)) as picture:
        assert (picture.mode, picture.getpixel((0, 0))) == ("L", 255)
    plain = accepted(client)
    problem(client.get(f"/v1/jobs/{plain['id']}/inputs/init_image"), 404, "image_not_found")
    problem(client.get(f"/v1/jobs/{job['id']}/inputs/picture"), 422, "invalid_request")


def test_what_a_job_started_from_is_named_for_another(client: TestClient, storage: Storage) -> None:
    first = submit(client, mask_image=base64.b64encode(png("#ffffff")).decode())
    named: dict[str, Any] = {field: f"/v1/jobs/{first['id']}/inputs/{field}" for field in ("init_image", "mask_image")}
    again = accepted(client, **named, seed=first["params"]["seed"])
    assert again["params"] == first["params"]
    assert accepted(client, init_image=f"/sd{named['init_image']}")["params"]["kind"] == "img2img"
    plain = accepted(client)
    nothing = f"/v1/jobs/{plain['id']}/inputs/init_image"
    problem(post_job(client, init_image=nothing), 404, "image_not_found")
    remove(client, first)
    problem(post_job(client, **named), 410, "gone")
    problem(client.get(named["init_image"]), 410, "gone")
    problem(post_job(client, init_image="/v1/jobs/nothing/inputs/init_image"), 422, "bad_picture")
    storage.delete(again["params"]["init_image"])  # by somebody else
    problem(client.get(f"/v1/jobs/{again['id']}/inputs/init_image"), 410, "gone")


def test_an_input_on_its_way_takes_its_part_of_the_memory_for_answers(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(client)
    app: Any = client.app
    memory = Memory(2)
    asyncio.run(memory.take("somebody", 1, patience_s=0))
    monkeypatch.setattr(large_answers, "PATIENCE_S", 0.0)
    monkeypatch.setattr(app.state, "desk", dataclasses.replace(app.state.desk, answers=memory))
    problem(client.get(f"/v1/jobs/{job['id']}/inputs/init_image"), 503, "too_busy")
