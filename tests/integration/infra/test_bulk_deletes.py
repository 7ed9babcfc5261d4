"""Stores that want Content-MD5 of bulk deletes, that know none, or that delete only a part: whoever deletes there."""

from datetime import timedelta
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, update

from api.main import create_app
from shared.errors import ObjectMissing, RenderFailed, StorageUnavailable
from shared.infra.db import Database
from shared.infra.storage import Storage, image_key, input_key, snapshot_key, upload_key
from shared.infra.tables import InputRow, JobRow, UploadRow
from shared.jobs import lifecycle, uploads
from shared.jobs.lifecycle import FinishedImage
from shared.settings import Settings
from tests.support import strict_store
from tests.support.jobs import claimed, submit
from tests.support.servers import Server
from tests.support.strict_store import Judge, deletes_none_of_it, refuses, wants_md5
from worker.courier import maintenance

KEYS = ["jobs/a", "jobs/b"]


def behind(settings: Settings, door: Server) -> Settings:
    return settings.model_copy(update={"s3_endpoint_url": door.url})


def put(storage: Storage, *keys: str) -> None:
    for key in keys:
        storage.put(key, b"bytes", content_type="image/png")


def stored(storage: Storage, *keys: str) -> list[str]:
    def is_there(key: str) -> bool:
        try:
            return bool(storage.get(key))
        except ObjectMissing:
            return False

    return [key for key in keys if is_there(key)]


def asked(door: Server) -> list[str]:
    """What was asked of a store, by methods; a bulk delete is the one POST."""
    return [what.split()[0] for what, *_ in door.asked]


def succeeded(db: Database) -> UUID:
    job_id, run = submit(db), claimed(db)
    picture = FinishedImage(0, 7, image_key(job_id, run.attempt, 0), "image/png", 64, 64, 5, "0" * 64)
    with db.transaction() as session:
        assert lifecycle.succeed(session, run, [picture])
    return job_id


def failed(db: Database) -> UUID:
    job_id, run = submit(db, max_attempts=1), claimed(db)
    with db.transaction() as session:
        assert lifecycle.note_snapshot(session, run)
        assert lifecycle.fail(session, run, RenderFailed("broken"))
    return job_id


@pytest.mark.usefixtures("announced", "redis")
@pytest.mark.parametrize("judge", [wants_md5, refuses(501, "NotImplemented")], ids=["md5", "none"])
def test_whoever_deletes_leaves_nothing_behind(
    settings: Settings, db: Database, storage: Storage, judge: Judge
) -> None:
    asked_for, aged, littering = succeeded(db), succeeded(db), failed(db)
    with db.transaction() as session:
        upload = uploads.add(session, owner="o", size_bytes=5).id
        session.add(InputRow(key=input_key("7" * 64), kept_until=func.now() - timedelta(days=1)))
        session.execute(update(UploadRow).values(created_at=func.now() - timedelta(days=2)))
    orphan = image_key(asked_for, 9, 0)
    keys = [image_key(job_id, 1, 0) for job_id in (asked_for, aged, littering)]
    keys += [snapshot_key(littering, 1), upload_key(upload), input_key("7" * 64), orphan]
    put(storage, *keys)
    with (
        strict_store.before(str(settings.s3_endpoint_url), judge) as door,
        TestClient(create_app(behind(settings, door))) as client,
    ):
        assert client.delete(f"/v1/jobs/{asked_for}").status_code == 204
        strict = Storage(behind(settings, door))
        with db.transaction() as session:
            session.execute(update(JobRow).values(finished_at=func.now() - timedelta(days=2)))
        assert maintenance.sweep_snapshots(db, strict) == 1
        assert maintenance.sweep_litter(db, strict) == 1
        assert maintenance.sweep_uploads(db, strict) == 1
        assert maintenance.sweep_inputs(db, strict) == 1
        assert maintenance.sweep_orphans(db, strict, {}) >= 1  # other tests left some
        assert maintenance.remove_aged(db, strict, days=1) == 2
    assert stored(storage, *keys) == []


def test_a_store_that_lacks_bulk_deletes_is_asked_once(settings: Settings, storage: Storage) -> None:
    with strict_store.before(str(settings.s3_endpoint_url), refuses(405)) as door:
        strict = Storage(behind(settings, door))
        for _ in range(2):
            put(storage, *KEYS)
            strict.delete_all([*KEYS, "jobs/missing"])
            assert stored(storage, *KEYS) == []
        assert asked(door) == ["POST", *["DELETE"] * 6]


@pytest.mark.parametrize(
    ("judge", "says"),
    [
        (deletes_none_of_it, "did not delete 2 objects: no"),
        (refuses(403, "AccessDenied"), "allow the key to do this"),
        (refuses(400, "ExpiredToken"), "renew the credentials"),
    ],
)
def test_a_refusal_that_means_something_else_is_told(
    settings: Settings, storage: Storage, judge: Judge, says: str
) -> None:
    put(storage, *KEYS)
    with strict_store.before(str(settings.s3_endpoint_url), judge) as door:
        with pytest.raises(StorageUnavailable, match=says):
            Storage(behind(settings, door)).delete_all(KEYS)
        assert asked(door) == ["POST"]
    assert stored(storage, *KEYS) == KEYS
