"""A call of many jobs is stored with its record, whole or not at all, and repeated under its id leads to itself."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from api.a1111 import calls
from shared.infra.db import Database
from shared.infra.tables import CallRow, JobRow

QUEUE = "/agent-scheduler/v1/queue/txt2img"
NAME = "dup1"
MANY: dict[str, Any] = {
    "prompt": "a red circle",
    "steps": 2,
    "width": 64,
    "height": 64,
    "seed": -1,
    "n_iter": 12,
    "force_task_id": NAME,
}


def count(db: Database) -> int:
    with db.transaction() as session:
        return session.scalar(select(func.count()).select_from(JobRow)) or 0


def of_the_call(db: Database) -> int:
    with db.transaction() as session:
        return len(session.scalars(select(CallRow.job_ids).where(CallRow.name == NAME)).one())


def test_a_failure_between_its_jobs_and_its_record_leaves_none(
    client: TestClient, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(calls, "record", lambda *_, **__: 1 / 0)
        assert client.post(QUEUE, json=MANY).status_code == 500
    assert count(db) == 0
    assert client.post(QUEUE, json=MANY).json() == {"task_id": NAME}
    assert count(db) == of_the_call(db)


def test_a_refused_job_leaves_none_of_the_others(client: TestClient, db: Database) -> None:
    refused = client.post(QUEUE, json={**MANY, "callback_url": "http://127.0.0.1/inside"})
    assert refused.status_code == 422, refused.text
    assert count(db) == 0


def test_repeated_under_its_id_it_leads_to_itself(client: TestClient, db: Database) -> None:
    client.post(QUEUE, json=MANY)  # and say that the answer was lost
    made = count(db)
    assert made > 1
    assert client.post(QUEUE, json=MANY).json() == {"task_id": NAME}
    assert count(db) == made == of_the_call(db)


def test_twice_at_once_it_is_one_call(client: TestClient, db: Database) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: client.post(QUEUE, json=MANY).json(), range(4)))
    assert answers == [{"task_id": NAME}] * 4
    assert count(db) == of_the_call(db)


def test_repeated_by_way_of_another_proxy_it_is_the_same(client: TestClient, db: Database) -> None:
    for path in ("", "/sd"):
        by_way = TestClient(client.app, client=("127.0.0.1", 1), headers={"X-Forwarded-Prefix": path})
        assert by_way.post(QUEUE, json=MANY).json() == {"task_id": NAME}
    assert count(db) == of_the_call(db) == 12
