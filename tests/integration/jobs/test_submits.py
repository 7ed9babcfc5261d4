"""Submits that are stored together, on the real database: each has its own outcome, and a place in the fair queue."""

import base64
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select, text

from api.admission import admit
from api.admission.admit import Asked
from api.admission.checkpoint_names import CheckpointNames
from api.admission.resolution import StoredInputs
from api.admission.submissions import Submission
from api.callers import Caller
from api.desk import Desk, open_desk
from api.main import create_app
from shared.errors import (
    DatabaseUnavailable,
    Gone,
    KeyReused,
    QueueFullForKey,
    SubmissionInFlight,
    UnknownCheckpoint,
)
from shared.infra.db import Database
from shared.infra.storage import Storage
from shared.infra.tables import JobRow
from shared.jobs import fair_queue, lifecycle, removal
from shared.jobs.idempotency import Digests, Name
from shared.jobs.submits import NewJob
from shared.settings import Settings
from tests.support.answers import problem
from tests.support.factories import DEMO, params, png
from tests.support.waiting import until

ADA = Caller("ada")
# What `select` can watch.
FD_SETSIZE = 1024


@pytest.fixture
def desk(settings: Settings, announced: str) -> Iterator[Desk]:
    assert announced == DEMO
    with open_desk(settings) as desk:
        yield desk


def asked(caller: Caller = ADA, *, called: str | UUID | None = None, body: str = "body", **changes: Any) -> Asked:
    submission = Submission.model_validate({"prompt": "a red circle", "checkpoint": DEMO, **changes})
    name = None if called is None else Name(caller.owner, called, Digests(body, ""))
    return Asked(caller, submission, StoredInputs(), name)


def store(desk: Desk, *group: Asked) -> list[JobRow | Exception]:
    return list(admit.store_group(desk, CheckpointNames(desk.settings), group))


def kinds(outcomes: list[JobRow | Exception]) -> list[type]:
    return [type(one) for one in outcomes]


def count(db: Database) -> int:
    with db.transaction() as session:
        return session.scalar(select(func.count()).select_from(JobRow)) or 0


def test_each_of_a_group_has_its_own_outcome(desk: Desk, db: Database) -> None:
    first = uuid4()
    store(desk, asked(called=first), asked(called="old"))
    outcomes = store(
        desk,
        asked(),
        asked(checkpoint="nobody-has-it"),
        asked(called="new"),
        asked(called="new"),  # at once: the second may try again
        asked(called="old"),
        asked(called="old", body="another"),
        asked(called=first),
        asked(Caller("bob", max_queued=1)),
        asked(Caller("bob", max_queued=1)),
    )
    assert kinds(outcomes) == [
        *(JobRow, UnknownCheckpoint, JobRow, SubmissionInFlight, JobRow, KeyReused),
        *(JobRow, JobRow, QueueFullForKey),
    ]
    assert isinstance(outcomes[6], JobRow)
    assert outcomes[6].id == first
    assert count(db) == 2 + 3


def test_a_name_whose_job_was_deleted_divides_no_group(desk: Desk, db: Database) -> None:
    [made] = store(desk, asked(called="k"))
    assert isinstance(made, JobRow)
    with db.transaction() as session:
        removal.remove(session, [lifecycle.cancel(session, made.id)])
    assert kinds(store(desk, asked(), asked(called="k"), asked())) == [JobRow, Gone, JobRow]


def test_groups_that_name_the_same_new_webhooks_wait_for_each_other_and_not_for_ever(desk: Desk) -> None:
    def churn(group: int) -> list[type]:
        urls = [f"https://93.184.215.14/{turn}/{number}" for turn in range(3) for number in range(20)]
        order = urls[:: 1 if group % 2 else -1]
        return kinds(store(desk, *(asked(webhook={"url": url}) for url in order)))

    with ThreadPoolExecutor(6) as pool:
        assert {kind for one in pool.map(churn, range(6)) for kind in one} == {JobRow}


def test_batches_that_name_the_same_new_webhooks_wait_for_each_other_and_not_for_ever(client: TestClient) -> None:
    def churn(number: int) -> int:
        urls = [f"https://93.184.215.14/batch/{at}" for at in range(40)][:: 1 if number % 2 else -1]
        jobs = [{"prompt": "x", "checkpoint": DEMO, "webhook": {"url": url}} for url in urls]
        batch = {"jobs": jobs, "webhook": {"url": urls[0]}}
        # A room may be full for longer than its patience, on a machine with much else to do.
        while (status := client.post("/v1/batches", json=batch).status_code) == 503:
            pass
        return status

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(churn, range(6))) == {202}


def test_what_is_returned_is_what_is_stored(desk: Desk, db: Database) -> None:
    for told in store(desk, asked(expires_in=60), asked(called=uuid4(), timeout=9, priority=-1)):
        assert isinstance(told, JobRow)
        with db.transaction() as session:
            found = lifecycle.get(session, told.id)
        for column in JobRow.__table__.columns.keys():  # noqa: SIM118 - of a collection, not a dict
            assert getattr(told, column) == getattr(found, column), column


def test_one_that_the_database_refuses_harms_no_other(client: TestClient, db: Database) -> None:
    with db.transaction() as session:
        session.execute(text("ALTER TABLE jobs ADD CONSTRAINT poison CHECK (params->>'prompt' <> 'poison')"))
    try:
        with ThreadPoolExecutor(16) as pool:
            bodies = [{"prompt": "poison" if n % 8 == 3 else "good", "checkpoint": DEMO} for n in range(32)]
            statuses = [
                answer.status_code for answer in pool.map(lambda body: client.post("/v1/jobs", json=body), bodies)
            ]
    finally:
        with db.transaction() as session:
            session.execute(text("ALTER TABLE jobs DROP CONSTRAINT poison"))
    assert statuses == [500 if body["prompt"] == "poison" else 202 for body in bodies]
    assert count(db) == 28


def test_a_group_takes_the_turns_that_its_jobs_would_take_alone(desk: Desk, db: Database) -> None:
    group = [asked(Caller(owner), steps=steps) for owner, steps in (("ada", 4), ("bob", 2), ("ada", 1), ("ada", 3))]
    together = [(row.virtual_start, row.virtual_finish) for row in store(desk, *group) if isinstance(row, JobRow)]
    with db.transaction() as session:
        session.execute(text("TRUNCATE jobs, images, shares, clocks, owner_shares, priority_clocks"))
    alone = [
        (row.virtual_start, row.virtual_finish) for one in group for row in store(desk, one) if isinstance(row, JobRow)
    ]
    assert together == alone


def test_submits_and_cancels_over_several_lanes_wait_for_each_other_and_not_for_ever(db: Database) -> None:
    """Postgres ends a deadlock after a second, with an error."""

    def churn(seed: int) -> None:
        lanes = [(name, priority, owner) for name in ("x", "y") for priority in (0, 1) for owner in "ab"]
        for turn in range(6):
            order = lanes[:: 1 if (seed + turn) % 2 else -1]
            new = [
                NewJob(params=params(checkpoint=name), max_attempts=1, owner=owner, priority=priority)
                for name, priority, owner in order
            ]
            rows = lifecycle.submit_at_once(db, new)
            with db.transaction() as session:
                session.execute(
                    text("SELECT FROM jobs WHERE id = ANY(:ids) FOR UPDATE"), {"ids": [row.id for row in rows]}
                )
                fair_queue.give_back(session, [row.id for row in rows])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(churn, range(6)))
    with db.transaction() as session:
        left = text("SELECT round(finish::numeric, 6) FROM owner_shares UNION SELECT greatest(0, finish) FROM shares")
        assert session.scalars(left).all() == [0]


def test_a_server_that_has_gone_and_come_back_costs_no_submit(db: Database, settings: Settings) -> None:
    idle = Database(settings, pool_size=1)
    [about] = idle.at_once("SELECT pg_backend_pid() AS pid", {})
    with db.transaction() as session:
        session.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), dict(about))
    assert len(lifecycle.submit_at_once(idle, [NewJob(params=params(), max_attempts=1)])) == 1
    idle.close()


def test_a_statement_whose_server_goes_away_may_have_been_stored(db: Database, settings: Settings) -> None:
    with closing(Database(settings, pool_size=1)) as lost:
        with pytest.raises(DatabaseUnavailable, match="may have been stored or not"):
            lost.at_once("SELECT pg_terminate_backend(pg_backend_pid(), 5000)", {})
        lost.ping()
        with lost.engine.connect() as connection:
            driver = connection.connection.driver_connection
            assert driver is not None
            line = socket.socket(fileno=os.dup(driver.fileno()))
        with line, ThreadPoolExecutor() as threads, db.transaction() as session:
            session.execute(text("SELECT pg_advisory_xact_lock(19)"))
            waiting = threads.submit(lost.at_once, "SELECT pg_advisory_xact_lock(19)", {})
            assert until(lambda: session.scalar(text("SELECT count(*) FROM pg_locks WHERE objid = 19 AND NOT granted")))
            line.shutdown(socket.SHUT_RDWR)
            with pytest.raises(DatabaseUnavailable, match="may have been stored or not"):
                waiting.result()


def test_a_statement_that_waits_for_a_lock_is_no_sign_of_a_silent_server(db: Database, settings: Settings) -> None:
    hasty = settings.model_copy(update={"connect_seconds": 1.0})
    with closing(Database(hasty, pool_size=1, patience_s=0.0)) as waiting, db.transaction() as session:
        session.execute(text("SELECT pg_advisory_xact_lock(19)"))
        with pytest.raises(DatabaseUnavailable, match="may have been stored or not"):
            waiting.at_once("SELECT pg_advisory_xact_lock(19)", {})
        waiting.ping()


def test_a_process_with_many_open_files_takes_submits(settings: Settings) -> None:
    with ExitStack() as files:
        while files.enter_context(Path(os.devnull).open()).fileno() < FD_SETSIZE:
            pass
        crowded = Database(settings, pool_size=1)
        assert len(lifecycle.submit_at_once(crowded, [NewJob(params=params(), max_attempts=1)])) == 1
        crowded.close()


def test_a_repeated_submission_stores_its_pictures_once(
    client: TestClient, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"prompt": "a red circle", "checkpoint": DEMO, "init_image": base64.b64encode(png("#ff0000")).decode()}
    headers = {"Idempotency-Key": "k"}
    first = client.post("/v1/jobs", json=body, headers=headers)
    assert first.status_code == 202, first.text
    monkeypatch.setattr(Storage, "put", lambda *_, **__: pytest.fail("stored again"))
    assert client.post("/v1/jobs", json=body, headers=headers).json()["id"] == first.json()["id"]
    problem(client.post("/v1/jobs", json={**body, "steps": 3}, headers=headers), 422, "idempotency_key_reused")
    assert count(db) == 1


def test_a_redis_that_says_nothing_holds_up_no_submit(settings: Settings, announced: str) -> None:
    """Its doorbells wait for it by themselves, up to a socket's timeout of 10 s each."""
    assert announced == DEMO
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = type(settings.redis_url)(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        with TestClient(create_app(settings.model_copy(update={"redis_url": url}))) as client:
            began = time.monotonic()
            answers = [client.post("/v1/jobs", json={"prompt": "p", "checkpoint": DEMO}) for _ in range(3)]
            took_s = time.monotonic() - began
            silent.close()
    assert [answer.status_code for answer in answers] == [202] * 3
    assert took_s < 8
