"""What becomes of jobs that have ended: rendered again, deleted, removed by age, swept of what nobody sees."""

import hashlib
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from redis import Redis
from sqlalchemy import func, select, update
from typer.testing import CliRunner

from api.cli.app import app as farm
from api.main import create_app
from shared.errors import ObjectMissing, OutOfMemory, RenderFailed
from shared.infra import storage as storages
from shared.infra.db import Database
from shared.infra.storage import IMAGES, Storage, image_key, snapshot_key
from shared.infra.tables import JobRow
from shared.jobs import lifecycle, removal
from shared.jobs.lifecycle import FinishedImage
from shared.settings import Settings
from shared.vocabulary.states import JobState
from tests.support.answers import problem
from tests.support.factories import DEMO
from tests.support.jobs import claimed, submit
from tests.support.workshop import serving
from worker.courier import maintenance


@pytest.fixture(scope="module")
def front(engines: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(engines), raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


@pytest.fixture
def client(front: TestClient, announced: str, redis: Redis) -> TestClient:
    assert announced == DEMO
    assert redis.ping()
    return front


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return Storage(settings)


PICTURE = b"picture"


def finished(key: str) -> FinishedImage:
    return FinishedImage(0, 7, key, "image/png", 64, 64, len(PICTURE), hashlib.sha256(PICTURE).hexdigest())


def put(storage: Storage, run: lifecycle.Attempt) -> str:
    key = image_key(run.job_id, run.attempt, 0)
    storage.put(key, PICTURE, content_type="image/png")
    return key


def succeeded(db: Database, storage: Storage) -> UUID:
    job_id = submit(db)
    taken = claimed(db)
    image = finished(put(storage, taken))
    with db.transaction() as session:
        assert lifecycle.succeed(session, taken, [image])
    return job_id


def failed(db: Database, error: RenderFailed | None = None, **changes: object) -> UUID:
    job_id = submit(db, **changes)
    with db.transaction() as session:
        assert lifecycle.fail(session, claim_of(session), error or RenderFailed("broken")) is not None
    return job_id


def claim_of(session: object) -> lifecycle.Claim:
    taken = lifecycle.claim_next(session, DEMO, "w", lease_s=20)  # type: ignore[arg-type]
    assert taken is not None
    return taken


def has(storage: Storage, key: str) -> bool:
    try:
        storage.get(key)
    except ObjectMissing:
        return False
    return True


def age(db: Database, days: float) -> None:
    with db.transaction() as session:
        session.execute(update(JobRow).values(finished_at=JobRow.finished_at - timedelta(days=days)))


def test_a_failed_job_is_rendered_again_as_a_new_one(client: TestClient, db: Database) -> None:
    old = failed(db, priority=3, timeout_s=60.0)
    made = client.post(f"/v1/jobs/{old}/retry")
    assert made.status_code == 202
    new = made.json()
    assert (new["state"], new["retry_of"], new["priority"], new["timeout_s"]) == ("queued", str(old), 3, 60.0)
    assert made.headers["location"] == f"/v1/jobs/{new['id']}"
    before = client.get(f"/v1/jobs/{old}").json()
    assert new["params"] == before["params"]
    assert before["state"] == "failed"
    assert client.post(f"/v1/jobs/{old}/retry").json()["id"] == new["id"]


def test_many_who_ask_at_once_make_one_job(client: TestClient, db: Database) -> None:
    old = failed(db)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.post(f"/v1/jobs/{old}/retry"), range(16)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1


def test_what_has_not_failed_is_not_retried(client: TestClient, db: Database, storage: Storage) -> None:
    problem(client.post(f"/v1/jobs/{succeeded(db, storage)}/retry"), 409, "nothing_to_retry")
    problem(client.post(f"/v1/jobs/{submit(db)}/retry"), 409, "nothing_to_retry")
    problem(client.post(f"/v1/jobs/{uuid.uuid4()}/retry"), 404, "job_not_found")


def test_the_dead_are_listed_and_retried_by_code(client: TestClient, db: Database) -> None:
    broken = [failed(db) for _ in range(2)]
    other = failed(db, OutOfMemory("full"), timeout_s=1.0)
    with db.transaction() as session:
        # The retryable one has tries left: end it for good.
        session.execute(update(JobRow).where(JobRow.id == other).values(state=JobState.FAILED, finished_at=func.now()))
    listed = client.get("/v1/jobs", params={"state": "failed", "error_code": "render_failed"}).json()["jobs"]
    assert {job["id"] for job in listed} == {str(job_id) for job_id in broken}
    made = client.post("/v1/jobs/retry", json={"error_code": "render_failed"})
    assert made.status_code == 202
    assert set(made.json()["jobs"]) == {str(job_id) for job_id in broken}
    assert client.post("/v1/jobs/retry", json={"error_code": "render_failed"}).json() == {"jobs": {}}
    assert set(client.post("/v1/jobs/retry", json={}).json()["jobs"]) == {str(other)}


@pytest.mark.parametrize("body", [{"limit": 0}, {"limit": 501}, {"error_code": "\0"}, {"owner": "x"}, {"since": "now"}])
def test_nonsense_retries_nothing(client: TestClient, body: dict[str, object]) -> None:
    problem(client.post("/v1/jobs/retry", json=body), 422, "invalid_request")


def test_a_deleted_job_is_gone_with_its_images(client: TestClient, db: Database, storage: Storage) -> None:
    job_id = succeeded(db, storage)
    assert has(storage, image_key(job_id, 1, 0))
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert not has(storage, image_key(job_id, 1, 0))
    for path in (f"/v1/jobs/{job_id}", f"/v1/jobs/{job_id}?wait=1", f"/v1/jobs/{job_id}/images/0"):
        problem(client.get(path), 410, "gone")
    problem(client.delete(f"/v1/jobs/{job_id}"), 410, "gone")
    problem(client.post(f"/v1/jobs/{job_id}/cancel"), 410, "gone")


@pytest.mark.parametrize("how", ["/thumbnail", "?inline=true"])
def test_a_picture_asked_for_while_its_job_is_deleted_is_gone(
    client: TestClient, db: Database, storage: Storage, how: str
) -> None:
    job_id = succeeded(db, storage)
    with db.transaction() as session:
        row = lifecycle.get(session, job_id)
    storage.delete_all(removal.objects(row))  # its objects go first
    told = problem(client.get(f"/v1/jobs/{job_id}/images/0{how}"), 410, "image_lost")
    assert str(job_id) in told["detail"]


def test_a_job_that_may_still_be_rendered_is_not_deleted(client: TestClient, db: Database) -> None:
    job_id = submit(db)
    problem(client.delete(f"/v1/jobs/{job_id}"), 409, "job_not_final")
    claimed(db)
    problem(client.delete(f"/v1/jobs/{job_id}"), 409, "job_not_final")


def test_old_jobs_go_and_young_ones_stay(client: TestClient, db: Database, storage: Storage) -> None:
    old = succeeded(db, storage)
    waiting = submit(db)
    age(db, 8)
    young = failed(db)
    assert maintenance.remove_aged(db, storage, days=0) == 0
    assert maintenance.remove_aged(db, storage, days=7) == 1
    assert not has(storage, image_key(old, 1, 0))
    problem(client.get(f"/v1/jobs/{old}"), 410, "gone")
    with db.transaction() as session:
        assert set(session.scalars(select(JobRow.id))) == {waiting, young}


def test_several_couriers_may_remove_at_once(db: Database, storage: Storage) -> None:
    for _ in range(12):
        succeeded(db, storage)
    age(db, 8)
    with ThreadPoolExecutor(3) as pool:
        removed = list(pool.map(lambda _: maintenance.remove_aged(db, storage, days=7), range(3)))
    assert max(removed) <= 12
    with db.transaction() as session:
        assert session.scalars(select(JobRow)).all() == []


def test_objects_of_attempts_that_came_to_nothing_are_swept(db: Database, storage: Storage) -> None:
    submit(db)
    lost = claimed(db)
    with db.transaction() as session:
        assert lifecycle.release(session, lost)
    kept = claimed(db)
    keys = put(storage, lost), put(storage, kept)
    with db.transaction() as session:
        assert lifecycle.succeed(session, kept, [finished(keys[1])])
    assert maintenance.sweep_litter(db, storage) == 0  # a late write may still be under way
    age(db, 1)
    assert maintenance.sweep_litter(db, storage) == 1
    assert [has(storage, key) for key in keys] == [False, True]
    assert maintenance.sweep_litter(db, storage) == 0


def test_what_a_stale_attempt_writes_after_the_sweep_is_found(db: Database, storage: Storage) -> None:
    done, removed, foreign = succeeded(db, storage), failed(db), uuid.uuid4()
    waiting = submit(db)
    claimed(db)
    with db.transaction() as session:
        removal.remove(session, [lifecycle.get(session, removed)])
    late = [image_key(done, 2, 0), image_key(removed, 1, 0), snapshot_key(done, 1), snapshot_key(removed, 3)]
    kept = [image_key(done, 1, 0), image_key(waiting, 1, 0), snapshot_key(waiting, 1), image_key(foreign, 1, 0)]
    strange = ["jobs/readme.txt", f"jobs/{done}/2/0.png.bak", f"jobs/{done}/0.png"]
    for key in (*late, *kept, *strange):
        storage.put(key, PICTURE, content_type="image/png")
    assert maintenance.sweep_orphans(db, storage, {}) >= len(late)  # other tests left some
    assert {key: has(storage, key) for key in (*late, *kept, *strange)} == {
        **dict.fromkeys(late, False),
        **dict.fromkeys((*kept, *strange), True),
    }


def test_a_large_bucket_is_walked_bit_by_bit(db: Database, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = failed(db)
    late = [image_key(dead, attempt, 0) for attempt in range(1, 8)]
    for key in late:
        storage.put(key, PICTURE, content_type="image/png")
    monkeypatch.setattr(storages, "LISTED_AT_ONCE", 2)
    monkeypatch.setattr(maintenance, "PAGES_AT_ONCE", 2)
    places = {IMAGES: f"{IMAGES}{dead}"}
    assert maintenance.sweep_orphans(db, storage, places) == 4
    assert places[IMAGES] == late[3]
    assert maintenance.sweep_orphans(db, storage, places) >= 3
    assert not any(has(storage, key) for key in late)


def test_the_command_line_retries_and_deletes(
    engines: Settings, announced: str, db: Database, storage: Storage
) -> None:
    assert announced
    dead, done = failed(db), succeeded(db, storage)
    with serving(engines) as address:
        run = lambda *words: CliRunner().invoke(farm, ["--url", address, *words])  # noqa: E731
        assert f"{dead} is retried as" in run("retry", str(dead)).output
        assert "0 retried" in run("retry", "--all").output
        assert run("delete", str(done)).output.strip() == f"{done} deleted"
        again = run("delete", str(done))
        assert (again.exit_code, "was deleted" in again.output) == (1, True)
        assert run("retry").exit_code == 2
