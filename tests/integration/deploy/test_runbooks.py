"""The commands of the runbooks, run as they stand there on the real engines; and the S3 policies against the keys in use."""

import json
import os
import re
import sys
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import httpx
import psycopg
import pytest

from api.auth import key_cache
from api.cli import checks
from api.cli.client import Front
from deploy.standalone import postgres
from shared.fleet import registry
from shared.fleet.weights_bucket import BucketFile
from shared.infra.db import Database
from shared.infra.storage import Storage, image_key, input_key, snapshot_key, upload_key
from shared.jobs import lifecycle
from shared.settings import Settings
from tests.support import buckets, pages
from tests.support.factories import DEMO, params
from tests.support.workshop import serving

DEPLOY = Path(__file__).parents[3] / "deploy"
POLICIES = {
    "worker": {"jobs/": {"Put"}, "inputs/": {"Get"}, "snapshots/": {"Put", "Get", "Delete"}, "weights/": {"Get"}},
    "api": {
        "jobs/": {"Get", "Delete"},
        "snapshots/": {"Delete"},
        "inputs/": {"Put", "Get"},
        "uploads/": {"Put", "Get"},
    },
    "courier": {"jobs/": {"Delete"}, "snapshots/": {"Delete"}, "uploads/": {"Delete"}, "inputs/": {"Delete"}},
    "librarian": {"weights/": {"Put", "Delete", "AbortMultipartUpload", "ListMultipartUploadParts"}},
}


@pytest.fixture
def env(settings: Settings, tmp_path: Path) -> dict[str, str]:
    """What the runbooks ask an operator to have in the environment."""
    (tmp_path / "backup").mkdir()
    programs = [str(Path(sys.executable).parent), str(_postgres_programs())]
    secret = settings.s3_secret_access_key
    assert secret is not None
    shell = pages.shell(tmp_path)
    return {
        **shell,
        "PATH": os.pathsep.join([*programs, shell["PATH"]]),
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
        job = lifecycle.submit(session, params(prompt="kept"), max_attempts=1)
    storage.put(f"jobs/{job.id}/1/0.png", b"picture", content_type="image/png")
    pages.run("backup.md", "backup", env)
    db.close()
    with psycopg.connect(env["PGURL"], autocommit=True) as connection:
        connection.execute("DELETE FROM jobs")
    storage.delete(f"jobs/{job.id}/1/0.png")
    pages.run("backup.md", "restore", env)
    with db.transaction() as session:
        assert lifecycle.get(session, job.id).params["prompt"] == "kept"
    assert storage.get(f"jobs/{job.id}/1/0.png") == b"picture"


def test_a_bucket_moves_with_all_its_objects(settings: Settings, storage: Storage, env: dict[str, str]) -> None:
    key = f"jobs/{uuid4()}/1/0.png"
    storage.put(key, b"picture", content_type="image/png")
    moved = buckets.ensured(Storage(settings.model_copy(update={"s3_bucket": env["NEW_BUCKET"]})))
    pages.run("bucket.md", "bucket", env)
    assert moved.get(key) == b"picture"


def test_a_key_and_the_webhooks_secret_are_rotated(
    settings: Settings, db: Database, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(token: str) -> int:
        return httpx.get(f"{url}/v1/jobs", headers={"Authorization": f"Bearer {token}"}, timeout=60).status_code

    assert db
    monkeypatch.setattr(key_cache, "REMEMBER_S", 0.0)
    with serving(settings.model_copy(update={"auth": "keys"})) as url:
        old, new = (pages.run("secrets.md", "key-create", {**env, "NAME": name}).strip() for name in ("old", "new"))
        assert (asked(old), asked(new)) == (200, 200)
        listed = [line.split("\t") for line in pages.run("secrets.md", "key-list", env).splitlines()]
        (old_id,) = [line[0] for line in listed if line[1] == "old"]
        pages.run("secrets.md", "key-revoke", {**env, "OLD_KEY_ID": old_id})
        assert (asked(old), asked(new)) == (401, 200)
        call = {**env, "FARM_URL": url, "FARM_API_KEY": new}
        assert checks.workers(Front(url, api_key=None)).fix == "set FARM_API_KEY"
        assert checks.workers(Front(url, api_key=new)).detail == "no gpu worker is ready; jobs wait in the queue"
        first, second = (json.loads(pages.run("secrets.md", "webhook", call))["secret"] for _ in range(2))
        assert first != second


@pytest.mark.usefixtures("announced")
def test_who_scales_by_hand_finds_how_many_are_wanted_and_who_goes_first(
    settings: Settings, db: Database, env: dict[str, str]
) -> None:
    with db.transaction() as session:
        registry.announce(
            session, worker_id="gpu1@test", checkpoint=DEMO, size_bytes=1, hostname="test", device="test", slots=4
        )
        lifecycle.submit(session, params(), max_attempts=1)
        claim = lifecycle.claim_next(session, DEMO, "gpu0@test", lease_s=60)
        assert claim
        registry.beat(session, "gpu0@test", speed=1.0)
        lifecycle.heartbeat(session, [lifecycle.Beat(claim.job_id, claim.attempt, 1)], lease_s=60)
    with serving(settings) as url:
        (wanted,) = pages.run("scale.md", "wanted", {**env, "FARM_URL": url}).splitlines()
        assert wanted.startswith("farm_desired_workers ")
        cost, first = pages.run("scale.md", "first", {**env, "FARM_URL": url}).split()
        assert (float(cost), first) == (0, "gpu1@test")
        pages.run("scale.md", "drain", {**env, "FARM_URL": url, "WORKER": first})
    with db.transaction() as session:
        assert registry.beat(session, first) is True


def test_every_command_of_the_pages_is_run_by_a_test() -> None:
    run = "".join(file.read_text() for file in Path(__file__).parents[1].rglob("test_*.py"))
    for page in pages.PAGES.glob("*.md"):
        for block in re.findall(r"^```sh (\S+)$", page.read_text(), re.MULTILINE):
            assert f'pages.run("{page.name}", "{block}"' in run, (page.name, block)


@pytest.mark.parametrize("process", POLICIES)
def test_a_policy_allows_the_prefixes_in_use_and_no_other(process: str) -> None:
    allowed = {}
    for one in json.loads((DEPLOY / f"s3-policy/{process}.json").read_text())["Statement"]:
        actions = [one["Action"]] if isinstance(one["Action"], str) else one["Action"]
        if one["Resource"] != "arn:aws:s3:::${BUCKET}":
            prefix = one["Resource"].removeprefix("arn:aws:s3:::${BUCKET}/").removesuffix("*")
            allowed[prefix] = {action.removeprefix("s3:").removesuffix("Object") for action in actions}
    assert allowed == POLICIES[process]
    weights = BucketFile("lora", "x", "0" * 64, 1, datetime.now(UTC))
    keys = [image_key(uuid4(), 1, 0), input_key("0" * 64), snapshot_key(uuid4(), 1), upload_key(uuid4()), weights.key]
    assert allowed.keys() <= {key.split("/")[0] + "/" for key in keys}


def _postgres_programs() -> Path:
    found = find_spec(postgres.PACKAGE)  # importing it would look for folders of its own
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / postgres.VERSION_FOLDER / "bin"
