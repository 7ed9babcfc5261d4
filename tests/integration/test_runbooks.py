"""The commands of the runbooks, run as they stand there on the real engines; and the S3 policies against the keys in use."""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from deploy.standalone import postgres
from shared import jobs
from shared.db import Database
from shared.settings import Settings
from shared.storage import Storage, image_key, input_key, snapshot_key, upload_key
from tests import pages
from tests.factories import params

DEPLOY = Path(__file__).parents[2] / "deploy"
POLICIES = {
    "worker": {"jobs/": {"Put"}, "inputs/": {"Get"}, "snapshots/": {"Put", "Get", "Delete"}},
    "api": {"jobs/": {"Get", "Delete"}, "snapshots/": {"Delete"}, "inputs/": {"Put"}, "uploads/": {"Put", "Get"}},
    "courier": {"jobs/": {"Delete"}, "snapshots/": {"Delete"}, "uploads/": {"Delete"}, "inputs/": {"Delete"}},
}


@pytest.fixture
def env(settings: Settings, tmp_path: Path) -> dict[str, str]:
    """What the runbooks ask an operator to have in the environment."""
    (tmp_path / "backup").mkdir()
    programs = [str(Path(sys.executable).parent), str(_postgres_programs())]
    secret = settings.s3_secret_access_key
    assert secret is not None
    return {
        **os.environ,
        "PATH": os.pathsep.join([*programs, os.environ["PATH"]]),
        "PGURL": settings.database_url.get_secret_value().replace("+psycopg", ""),
        "BACKUP": str(tmp_path / "backup"),
        "FARM_S3_BUCKET": settings.s3_bucket,
        "NEW_BUCKET": f"moved-{uuid4().hex}",
        "RCLONE_CONFIG": str(tmp_path / "rclone.conf"),
        "RCLONE_CONFIG_FARM_TYPE": "s3",
        "RCLONE_CONFIG_FARM_PROVIDER": "Other",
        "RCLONE_CONFIG_FARM_ENDPOINT": settings.s3_endpoint_url or "",
        "RCLONE_CONFIG_FARM_ACCESS_KEY_ID": settings.s3_access_key_id or "",
        "RCLONE_CONFIG_FARM_SECRET_ACCESS_KEY": secret.get_secret_value(),
    }


def test_what_was_backed_up_comes_back(db: Database, storage: Storage, env: dict[str, str]) -> None:
    with db.transaction() as session:
        job = jobs.submit(session, params(prompt="kept"), max_attempts=1)
    storage.put(f"jobs/{job.id}/1/0.png", b"picture", content_type="image/png")
    pages.run("backup.md", "backup", env)
    db.close()
    with psycopg.connect(env["PGURL"], autocommit=True) as connection:
        connection.execute("DELETE FROM jobs")
    storage.delete(f"jobs/{job.id}/1/0.png")
    pages.run("backup.md", "restore", env)
    with db.transaction() as session:
        assert jobs.get(session, job.id).params["prompt"] == "kept"
    assert storage.get(f"jobs/{job.id}/1/0.png") == b"picture"


def test_a_bucket_moves_with_all_its_objects(settings: Settings, storage: Storage, env: dict[str, str]) -> None:
    key = f"jobs/{uuid4()}/1/0.png"
    storage.put(key, b"picture", content_type="image/png")
    moved = Storage(settings.model_copy(update={"s3_bucket": env["NEW_BUCKET"]}))
    moved.ensure_bucket()
    pages.run("bucket.md", "bucket", env)
    assert moved.get(key) == b"picture"


@pytest.mark.parametrize("process", POLICIES)
def test_a_policy_allows_the_prefixes_in_use_and_no_other(process: str) -> None:
    allowed = {}
    for one in json.loads((DEPLOY / f"s3-policy/{process}.json").read_text())["Statement"]:
        actions = [one["Action"]] if isinstance(one["Action"], str) else one["Action"]
        if actions != ["s3:ListBucket"]:
            prefix = one["Resource"].removeprefix("arn:aws:s3:::${BUCKET}/").removesuffix("*")
            allowed[prefix] = {action.removeprefix("s3:").removesuffix("Object") for action in actions}
    assert allowed == POLICIES[process]
    keys = [image_key(uuid4(), 1, 0), input_key("0" * 64), snapshot_key(uuid4(), 1), upload_key(uuid4())]
    assert allowed.keys() <= {key.split("/")[0] + "/" for key in keys}


def _postgres_programs() -> Path:
    found = find_spec(postgres.PACKAGE)  # importing it would look for folders of its own
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / postgres.VERSION_FOLDER / "bin"
