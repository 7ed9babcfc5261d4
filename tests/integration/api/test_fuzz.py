"""Whatever a client sends, the API answers as it documents: requests made from the OpenAPI document, good and bad.

All of schemathesis' checks, on every operation but A1111's two calls that are held until a picture is there. Ids in paths are
made up or of what is there. A few seeded requests each; `make fuzz` sends many, and others every time.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from redis import Redis
from schemathesis import Case
from schemathesis.core.result import Ok

from api.auth import keys
from api.auth.keys import NewKey, Scope
from api.main import create_app
from shared.infra.db import Database
from shared.settings import Settings
from tests.support.factories import BODY, DEMO

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
HELD = {"/sdapi/v1/txt2img", "/sdapi/v1/img2img"}
# JSON Schema cannot say all that the farm asks: sizes that go together, what is stored, what a checkpoint can do.
ASKED_MORE = ["2xx", "3xx", 400, 401, 403, 404, 409, 410, 413, 422, 429]
# AUTOMATIC1111 fails with status 500 where a name is unknown, which its clients show to their users; so does its dialect.
DIALECT = {
    "include-path-regex": "^/(sdapi|agent-scheduler)/",
    "checks": {
        "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", 500]},
        "positive_data_acceptance": {"expected-statuses": [*ASKED_MORE, 500]},
    },
}
CONFIG = {"checks": {"positive_data_acceptance": {"expected-statuses": ASKED_MORE}}, "operations": [DIALECT]}
FEW_OR_MANY = settings(
    max_examples=EXAMPLES or 4,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def app(engines: Settings) -> Iterator[FastAPI]:
    wanted = engines.model_copy(update={"auth": "keys", "allow_private_urls": True, "default_checkpoint": DEMO})
    app = create_app(wanted)
    with TestClient(app):
        yield app


@pytest.fixture
def bearer(announced: str, db: Database, redis: Redis) -> dict[str, str]:
    assert announced == DEMO
    assert redis.ping()
    with db.transaction() as session:
        token = keys.create(session, NewKey(name="n", scopes=frozenset(Scope)))[1].text
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def ids(app: FastAPI, bearer: dict[str, str]) -> dict[str, str]:
    """What the paths' parameters may name."""
    client = TestClient(app, headers=bearer)
    hook = {"url": "http://127.0.0.1:9/", "events": ["job.canceled"]}
    endpoint = client.post("/v1/webhooks/endpoints", json=hook).json()
    batch = client.post("/v1/batches", json={"jobs": [BODY]}).json()
    [job] = client.get("/v1/jobs").json()["jobs"]
    client.post(f"/v1/jobs/{job['id']}/cancel")
    upload = client.post("/v1/uploads", json={"size_bytes": 1}).json()
    [delivery] = client.get("/v1/webhooks/deliveries").json()["deliveries"]
    named = {"job": job, "batch": batch, "endpoint": endpoint, "delivery": delivery, "upload": upload}
    return {f"{name}_id": str(one["id"]) for name, one in named.items()}


def test_every_answer_is_as_documented(app: FastAPI, bearer: dict[str, str], ids: dict[str, str]) -> None:
    config = schemathesis.Config.from_dict(CONFIG)
    failures: list[str] = []
    walked = 0
    for found in schemathesis.openapi.from_asgi("/openapi.json", app, config=config).get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        if operation.path not in HELD:
            walked += 1
            failures += told(operation, bearer, ids)
    assert walked > 80
    assert not failures, "\n\n".join(failures)


def told(operation: Any, bearer: dict[str, str], ids: dict[str, str]) -> list[str]:
    """Send one operation's requests; returns what was wrong with the answers."""

    @FEW_OR_MANY
    @given(case=operation.as_strategy(), real=st.booleans())
    def checked(case: Case[Any], real: bool) -> None:
        if real:
            case.path_parameters |= {name: ids[name] for name in case.path_parameters if name in ids}
        # No worker renders here: whoever waits would wait for nothing.
        case.query.pop("wait", None)
        case.headers.pop("Prefer", None)
        case.call_and_validate(headers=bearer)

    try:
        checked()
    except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - an answer of 500 comes as what the api raised
        parts = error.exceptions if isinstance(error, BaseExceptionGroup) else (error,)
        return [f"{operation.label}: {error}", *map(repr, parts)]
    return []
