"""A submission that is sent twice under one key makes one job."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from redis import Redis
from sqlalchemy import func, select, update

from api.main import create_app
from shared import promises
from shared.db import Database, JobRow, PromiseRow
from shared.settings import Settings
from tests.factories import DEMO
from tests.integration.test_api import BODY, problem


@pytest.fixture(scope="module")
def front(engines: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(engines), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def client(front: TestClient, announced: str, redis: Redis) -> TestClient:
    assert announced == DEMO
    assert redis.dbsize() == 0
    return front


def submit(client: TestClient, key: str, **changes: Any) -> Any:
    return client.post("/v1/jobs", json={**BODY, **changes}, headers={"Idempotency-Key": key})


def count(db: Database) -> int:
    with db.transaction() as session:
        return session.scalar(select(func.count()).select_from(JobRow)) or 0


def test_the_same_again_is_the_same_job(client: TestClient, db: Database) -> None:
    first, again = submit(client, "k"), submit(client, "k")
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    assert first.json()["seeds"] == again.json()["seeds"]  # drawn once
    assert submit(client, "another").json()["id"] != first.json()["id"]
    assert count(db) == 2


def test_another_body_is_refused(client: TestClient, db: Database) -> None:
    submit(client, "k")
    problem(submit(client, "k", steps=5), 422, "idempotency_key_reused")
    assert count(db) == 1


def test_a_refused_submission_leaves_its_key_free(client: TestClient) -> None:
    problem(submit(client, "k", checkpoint="nobody-has-it"), 422, "unknown_checkpoint")
    assert submit(client, "k").status_code == 202


def test_a_hundred_at_once_make_one_job(client: TestClient, db: Database) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: submit(client, "k"), range(100)))
    made = {answer.json()["id"] for answer in answers if answer.status_code == 202}
    assert len(made) == 1
    assert count(db) == 1
    for answer in answers:
        if answer.status_code != 202:
            problem(answer, 409, "submission_in_flight")
            assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize("key", ["", "two words", "x" * 256])
def test_a_key_is_a_short_word(client: TestClient, key: str) -> None:
    problem(submit(client, key), 422, "invalid_request")


def test_keys_are_kept_for_two_days(client: TestClient, db: Database) -> None:
    first = submit(client, "k").json()["id"]
    for hours, same in ((47, True), (2, False)):
        with db.transaction() as session:
            session.execute(update(PromiseRow).values(created_at=PromiseRow.created_at - timedelta(hours=hours)))
            promises.forget(session)
        assert (submit(client, "k").json()["id"] == first) is same
