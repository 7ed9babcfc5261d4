"""A submission that is sent twice under one key, or one id of the client's, makes one job."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select, update

from shared.infra.db import Database
from shared.infra.tables import JobRow, PromiseRow
from shared.jobs import idempotency
from tests.support.answers import post_job, problem
from tests.support.factories import BODY

CHOSEN = "6f1f0f5e-7f54-4a0b-9f0e-2f6d7c1f4b11"  # of version 4: not ordered by time


def submit(client: TestClient, key: str, **changes: Any) -> Any:
    return post_job(client, headers={"Idempotency-Key": key}, **changes)


def put(client: TestClient, job_id: str, **changes: Any) -> Any:
    return client.put(f"/v1/jobs/{job_id}", json={**BODY, **changes})


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


def test_white_space_and_the_order_of_fields_make_no_other_body(client: TestClient, db: Database) -> None:
    spelled = json.dumps(dict(reversed(BODY.items())), indent=3).encode()
    headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
    assert client.post("/v1/jobs", content=spelled, headers=headers).json()["id"] == submit(client, "k").json()["id"]
    made = client.put(f"/v1/jobs/{CHOSEN}", content=spelled, headers=headers)
    assert (made.status_code, put(client, CHOSEN).status_code) == (202, 202)
    assert count(db) == 2


def test_a_default_that_is_sent_makes_another_body(client: TestClient) -> None:
    """It might be another one in the next release."""
    submit(client, "k")
    problem(submit(client, "k", num_images=1), 422, "idempotency_key_reused")


def test_a_body_is_known_again_whatever_another_release_reads_in_it(client: TestClient, db: Database) -> None:
    made = submit(client, "k").json()["id"]
    put(client, CHOSEN)
    with db.transaction() as session:
        for table in (PromiseRow, JobRow):
            session.execute(update(table).values(digest="of another reading"))
    assert submit(client, "k").json()["id"] == made
    assert put(client, CHOSEN).status_code == 202
    problem(submit(client, "k", steps=5), 422, "idempotency_key_reused")
    problem(put(client, CHOSEN, steps=5), 422, "idempotency_key_reused")


def test_a_body_that_an_earlier_release_stored_is_known_again(client: TestClient, db: Database) -> None:
    made = submit(client, "k").json()["id"]
    put(client, CHOSEN)
    with db.transaction() as session:
        for table in (PromiseRow, JobRow):
            session.execute(update(table).values(sent_digest=None))
    assert submit(client, "k").json()["id"] == made
    assert put(client, CHOSEN).status_code == 202
    problem(submit(client, "k", steps=5), 422, "idempotency_key_reused")
    problem(put(client, CHOSEN, steps=5), 422, "idempotency_key_reused")


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
            idempotency.forget(session)
        assert (submit(client, "k").json()["id"] == first) is same


def test_a_job_under_a_clients_own_id(client: TestClient, db: Database) -> None:
    first = put(client, CHOSEN)
    assert (first.status_code, first.json()["id"], first.headers["location"]) == (202, CHOSEN, f"/v1/jobs/{CHOSEN}")
    again = put(client, CHOSEN)
    assert (again.status_code, again.json()["seeds"]) == (202, first.json()["seeds"])
    problem(put(client, CHOSEN, steps=5), 422, "idempotency_key_reused")
    assert client.get(f"/v1/jobs/{CHOSEN}").json()["state"] == "queued"
    assert count(db) == 1


def test_an_id_that_the_farm_gave_is_not_free(client: TestClient) -> None:
    problem(put(client, client.post("/v1/jobs", json=BODY).json()["id"]), 422, "idempotency_key_reused")


def test_an_id_of_a_removed_job_stays_gone(client: TestClient) -> None:
    put(client, CHOSEN)
    client.post(f"/v1/jobs/{CHOSEN}/cancel")
    assert client.delete(f"/v1/jobs/{CHOSEN}").status_code == 204
    problem(put(client, CHOSEN), 410, "gone")


def test_a_refused_submission_leaves_its_id_free(client: TestClient) -> None:
    problem(put(client, CHOSEN, checkpoint="nobody-has-it"), 422, "unknown_checkpoint")
    assert put(client, CHOSEN).status_code == 202


def test_a_hundred_at_once_under_one_id_make_one_job(client: TestClient, db: Database) -> None:
    with ThreadPoolExecutor(16) as pool:
        statuses = {answer.status_code for answer in pool.map(lambda _: put(client, CHOSEN), range(100))}
    assert 202 in statuses
    assert statuses <= {202, 409}
    assert count(db) == 1


def test_chosen_ids_do_not_disturb_the_order_of_age(client: TestClient) -> None:
    low, high = "00000000-0000-4000-8000-000000000000", "ffffffff-ffff-4fff-bfff-ffffffffffff"
    ids = [
        put(client, high).json()["id"],
        client.post("/v1/jobs", json=BODY).json()["id"],
        put(client, low).json()["id"],
    ]
    listed: list[str] = []
    cursor = None
    while len(listed) < len(ids):
        page = client.get("/v1/jobs", params={"limit": 1} | ({"cursor": cursor} if cursor else {})).json()
        listed += [job["id"] for job in page["jobs"]]
        cursor = page["next_cursor"]
    assert (listed, cursor) == (ids[::-1], None)
