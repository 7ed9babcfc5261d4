"""A submit whose commit is never answered: it is honestly refused, and the same again leads to the jobs that it made."""

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from redis import Redis
from sqlalchemy import func, select
from sqlalchemy.engine import make_url

from api import desk
from api.main import create_app
from shared.infra.db import Database
from shared.infra.tables import JobRow
from shared.settings import Settings
from tests.support.factories import BODY
from tests.support.lossy import LossyLine, lossy
from tests.support.waiting import until

Submit = Callable[[TestClient, str], Any]


@pytest.fixture
def line(settings: Settings) -> Iterator[LossyLine]:
    port = make_url(settings.database_url.get_secret_value()).port
    assert port
    with lossy(port) as opened:
        yield opened


@pytest.fixture
def client(
    settings: Settings, line: LossyLine, announced: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TestClient]:
    assert announced
    assert redis.ping()
    monkeypatch.setattr(desk, "PATIENCE_S", 0.0)
    url = make_url(settings.database_url.get_secret_value()).set(port=line.port)
    through = {"database_url": SecretStr(url.render_as_string(hide_password=False)), "connect_seconds": 2.0}
    with TestClient(create_app(settings.model_copy(update=through))) as opened:
        yield opened


def by_key(client: TestClient, name: str) -> Any:
    return client.post("/v1/jobs", json=BODY, headers={"Idempotency-Key": name})


def by_id(client: TestClient, name: str) -> Any:
    return client.put(f"/v1/jobs/{name}", json=BODY)


def batch(client: TestClient, name: str) -> Any:
    return client.post("/v1/batches", json={"jobs": [BODY, BODY]}, headers={"Idempotency-Key": name})


@pytest.mark.parametrize(("submit", "jobs"), [(by_key, 1), (by_id, 1), (batch, 2)])
def test_a_submit_whose_answer_was_lost_can_be_repeated(
    client: TestClient, db: Database, line: LossyLine, submit: Submit, jobs: int
) -> None:
    line.lose.set()
    name = str(uuid4())
    refusal = submit(client, name)
    assert line.lost.is_set()
    assert (refusal.status_code, refusal.json()["code"]) == (503, "database_unavailable")
    assert refusal.headers["retry-after"]
    assert "may have been stored or not" in refusal.json()["detail"]

    answers = [refusal]

    def is_answered() -> bool:
        answers.append(submit(client, name))
        return bool(answers[-1].is_success)

    assert until(is_answered)
    assert {answer.status_code for answer in answers[1:-1]} <= {409, 503}
    assert submit(client, name).json()["id"] == answers[-1].json()["id"]
    with db.transaction() as session:
        assert session.scalar(select(func.count()).select_from(JobRow)) == jobs
