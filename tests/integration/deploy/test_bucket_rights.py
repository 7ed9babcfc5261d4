"""`farm doctor` in a bucket: it asks for nothing that the policy of its role refuses, and finds out what a key is for.

The store of the tests knows no policies, so they are applied to every call on its way there.
"""

import json
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from api.cli import bucket_probes, checks
from api.cli.bucket_roles import Role
from api.cli.checks import Level
from shared.infra import storage as storages
from shared.infra.storage import Storage
from shared.settings import Settings

POLICIES = Path(__file__).parents[3] / "deploy/s3-policy"
ACTIONS = {"HeadBucket": "ListBucket", "ListObjectsV2": "ListBucket", "DeleteObjects": "DeleteObject"}


@pytest.fixture
def bound(settings: Settings) -> Callable[[str], Storage]:
    """Opens the bucket with what a policy allows; that of "nobody" allows nothing."""

    def open_(name: str) -> Storage:
        statements = json.loads((POLICIES / f"{name}.json").read_text())["Statement"] if name != "nobody" else []

        def judge(params: dict[str, Any], model: Any, **_: Any) -> None:
            resource = "arn:aws:s3:::${BUCKET}" + (f"/{params['Key']}" if "Key" in params else "")
            action = f"s3:{ACTIONS.get(model.name, model.name)}"
            if not any(_allows(one, action, resource, params.get("Prefix", "")) for one in statements):
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
    [("worker", {Role.WORKER}), ("api", {Role.API}), ("courier", {Role.COURIER}), ("nobody", set())],
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


def _allows(statement: dict[str, Any], action: str, resource: str, prefix: str) -> bool:
    actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
    prefixes = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix", ["*"])
    return (
        statement["Effect"] == "Allow"
        and action in actions
        and fnmatchcase(resource, statement["Resource"])
        and any(fnmatchcase(prefix, one) for one in prefixes)
    )
