"""`farm doctor` in a bucket: it asks for nothing that the policy of its role refuses, and finds out what a key is for.

The store of the tests knows no policies, so they are applied to every call on its way there.
"""

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from api.cli import bucket_probes, checks
from api.cli.bucket_roles import Role
from api.cli.checks import Level
from shared.errors import StorageUnavailable
from shared.fleet import weights_bucket
from shared.fleet.weights_bucket import BucketFile
from shared.infra import storage as storages
from shared.infra.db import Database
from shared.infra.storage import Storage
from shared.settings import Settings
from tests.support.headers import SD15, write
from worker.courier import maintenance

POLICIES = Path(__file__).parents[3] / "deploy/s3-policy"
ACTIONS = {
    "HeadBucket": "ListBucket",
    "ListObjectsV2": "ListBucket",
    "DeleteObjects": "DeleteObject",
    "CreateMultipartUpload": "PutObject",
    "UploadPart": "PutObject",
    "CompleteMultipartUpload": "PutObject",
    "ListParts": "ListMultipartUploadParts",
    "ListMultipartUploads": "ListBucketMultipartUploads",
}


@pytest.fixture
def bound(settings: Settings) -> Callable[[str], Storage]:
    """Opens the bucket with what a policy allows; that of "nobody" allows nothing."""

    def open_(name: str) -> Storage:
        statements = json.loads((POLICIES / f"{name}.json").read_text())["Statement"] if name != "nobody" else []

        def judge(params: dict[str, Any], model: Any, **_: Any) -> None:
            keys = (
                [params["Key"]]
                if "Key" in params
                else [one["Key"] for one in params.get("Delete", {}).get("Objects", [])]
            )
            action = f"s3:{ACTIONS.get(model.name, model.name)}"
            for path in [f"/{key}" for key in keys] or [""]:
                resource = "arn:aws:s3:::${BUCKET}" + path
                if any(_allows(one, action, resource, params.get("Prefix", "")) for one in statements):
                    continue
                raise ClientError({"Error": {"Code": "AccessDenied", "Message": "Access Denied"}}, model.name)

        store = Storage(settings)
        store._client.meta.events.register("before-parameter-build.s3", judge)
        return store

    return open_


@pytest.mark.parametrize("role", Role)
def test_a_role_is_probed_within_its_policy(bound: Callable[[str], Storage], role: Role) -> None:
    assert bucket_probes.probe(bound(role), [role]) == {role: None}


@pytest.mark.parametrize("policy", [*Role, "nobody"])
def test_a_key_that_may_not_look_at_the_bucket_is_no_wrong_key(bound: Callable[[str], Storage], policy: str) -> None:
    bound(policy).check()


@pytest.mark.parametrize(
    ("policy", "able"),
    [*((role, {role}) for role in Role), ("nobody", set())],
)
def test_what_a_key_is_for_is_found_out(bound: Callable[[str], Storage], policy: str, able: set[Role]) -> None:
    found = bucket_probes.probe(bound(policy))
    assert {role for role, refusal in found.items() if refusal is None} == able


@pytest.mark.parametrize(
    ("policy", "role", "level", "said"),
    [
        ("worker", None, Level.OK, "worker"),
        ("courier", Role.WORKER, Level.FAIL, "as worker: "),
        ("nobody", None, Level.FAIL, "as courier: "),
    ],
)
def test_the_doctor_says_what_a_key_may_do(
    bound: Callable[[str], Storage],
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
    role: Role | None,
    level: Level,
    said: str,
) -> None:
    monkeypatch.setattr(storages, "Storage", lambda _settings: bound(policy))
    finding = checks.storage(role)
    assert finding.level is level
    assert said in finding.detail
    assert ("deploy/s3-policy" in finding.fix) == (level is Level.FAIL)


def test_the_courier_takes_stock_within_its_policy(bound: Callable[[str], Storage], db: Database) -> None:
    maintenance.take_stock(db, bound("courier"))


def test_weights_are_pushed_and_fetched_within_the_policies(bound: Callable[[str], Storage], tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", SD15)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    file = BucketFile("checkpoint", "x", sha256, path.stat().st_size, datetime.now(UTC))
    weights_bucket.push(bound("librarian"), file, path, b"", lambda _count: None)
    worker = bound("worker")
    (found,) = weights_bucket.look(worker, "checkpoint/x/")
    assert weights_bucket.read_header(worker, found)
    with pytest.raises(StorageUnavailable, match="AccessDenied"):
        weights_bucket.remove(worker, "checkpoint", "x")
    assert weights_bucket.remove(bound("librarian"), "checkpoint", "x") == 1


def _allows(statement: dict[str, Any], action: str, resource: str, prefix: str) -> bool:
    actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
    prefixes = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix", ["*"])
    return (
        statement["Effect"] == "Allow"
        and action in actions
        and fnmatchcase(resource, statement["Resource"])
        and any(fnmatchcase(prefix, one) for one in prefixes)
    )
