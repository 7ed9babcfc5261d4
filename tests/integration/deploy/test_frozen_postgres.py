"""A Postgres that stands still with its sockets open: all are answered in time, and afterwards nothing is lost or doubled."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from threading import Event
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import event, func, select, text
from sqlalchemy.engine import make_url

from api import desk
from api.main import create_app
from deploy.standalone.farm import engines_only
from shared import migrations
from shared.errors import DatabaseUnavailable
from shared.fleet import registry
from shared.infra.db import Database
from shared.infra.tables import JobRow
from shared.settings import Settings
from tests.support.factories import BODY, DEMO
from tests.support.frozen import freeze, frozen, process_of, thaw
from tests.support.waiting import LIMIT_S, until
from tests.support.workshop import serving

READERS = 60
READY_S, ANSWER_S = 5.0, 15.0
SLACK_S = 3.0  # of a machine that others keep busy


@pytest.fixture(scope="module")
def own(engines: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """The settings of a farm with a Postgres of its own, which may be stopped."""
    others = {name: value for name, value in os.environ.items() if name != "FARM_DATABASE_URL"}
    with engines_only(tmp_path_factory.mktemp("postgres"), others) as env:
        migrations.upgrade(env["FARM_DATABASE_URL"])
        here = {"database_url": SecretStr(env["FARM_DATABASE_URL"]), "connect_seconds": 2.0}
        settings = engines.model_copy(update=here)
        with closing(Database(settings, pool_size=1)) as db, db.transaction() as session:
            registry.announce(
                session, worker_id="gpu0@here", checkpoint=DEMO, size_bytes=1, hostname="test", device="test", slots=4
            )
            session.execute(text("UPDATE workers SET seen_at = now() + interval '1 hour'"))
        yield settings


@pytest.fixture
def server(own: Settings) -> psutil.Process:
    port = make_url(own.database_url.get_secret_value()).port
    assert port
    return process_of(port)


def test_a_crowd_before_a_frozen_postgres_is_answered_in_time(own: Settings, server: psutil.Process) -> None:
    with serving(own) as url, httpx.Client(base_url=url, timeout=LIMIT_S) as http:
        submitted = http.post("/v1/jobs", json=BODY).json()["id"]
        with crowd(url) as seen:
            assert until(lambda: len(seen) > READERS)
            with frozen(server), ThreadPoolExecutor() as threads:
                ready = threads.submit(http.get, "/readyz")
                submits = [threads.submit(http.post, "/v1/jobs", json=BODY) for _ in range(2)]
                refusals = [one.result() for one in submits]
                assert ready.result().status_code == 503
                assert not ready.result().json()["dependencies"]["postgres"]["ok"]
                assert ready.result().elapsed.total_seconds() < READY_S + SLACK_S
                refusals.append(http.get(f"/v1/jobs/{submitted}"))
        for refusal in refusals:
            assert (refusal.status_code, refusal.json()["code"]) == (503, "database_unavailable")
            assert refusal.headers["content-type"] == "application/problem+json"
            assert refusal.headers["retry-after"]
            assert refusal.elapsed.total_seconds() < ANSWER_S + SLACK_S
        assert {answer.status_code for answer in seen} == {200, 503}
        assert max(answer.elapsed.total_seconds() for answer in seen) < ANSWER_S + SLACK_S

        assert until(lambda: http.get("/v1/jobs").is_success)
        with crowd(url) as seen:
            assert until(lambda: len(seen) > READERS)
        assert {answer.status_code for answer in seen} == {200}
        assert http.get("/readyz").is_success
        assert http.get(f"/v1/jobs/{submitted}").json()["state"] == "queued"
        assert http.post("/v1/jobs", json=BODY).status_code == 202


@contextmanager
def crowd(url: str) -> Iterator[list[httpx.Response]]:
    """Have many clients read while the block lasts; yields their answers as they come."""
    over, seen = Event(), list[httpx.Response]()

    def read() -> None:
        with httpx.Client(base_url=url, timeout=LIMIT_S) as reader:
            while not over.wait(0.05):
                seen.append(reader.get("/v1/jobs"))

    with ThreadPoolExecutor(READERS) as threads:
        reading = [threads.submit(read) for _ in range(READERS)]
        try:
            yield seen
        finally:
            over.set()
    for one in reading:
        one.result()


def _keyed(client: TestClient, name: str) -> Any:
    return client.post("/v1/jobs", json=BODY, headers={"Idempotency-Key": name})


def _named(client: TestClient, name: str) -> Any:
    return client.put(f"/v1/jobs/{name}", json=BODY)


def _batch(client: TestClient, name: str) -> Any:
    return client.post("/v1/batches", json={"jobs": [BODY, BODY]}, headers={"Idempotency-Key": name})


@pytest.mark.parametrize(("submit", "jobs"), [(_keyed, 1), (_named, 1), (_batch, 2)], ids=["key", "id", "batch"])
def test_a_submit_whose_commit_was_not_answered_can_be_repeated(
    own: Settings,
    server: psutil.Process,
    monkeypatch: pytest.MonkeyPatch,
    submit: Callable[[TestClient, str], Any],
    jobs: int,
) -> None:
    monkeypatch.setattr(desk, "PATIENCE_S", 0.0)
    name, stopped = str(uuid4()), list[psutil.Process]()
    with TestClient(create_app(own)) as client, closing(Database(own, pool_size=1)) as db:
        assert submit(client, str(uuid4())).status_code == 202  # whatever is remembered of the farm is so
        before = _count(db)
        engine = client.app.state.desk.db.engine  # type: ignore[attr-defined]

        @event.listens_for(engine, "after_cursor_execute")
        def stored(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            connection.info["stored"] = statement.startswith("INSERT INTO jobs") or connection.info.get("stored")

        @event.listens_for(engine, "commit")
        def still(connection: Any) -> None:
            if connection.info.get("stored") and not stopped:
                stopped.extend(freeze(server))

        try:
            refusal = submit(client, name)
        finally:
            thaw(stopped)
        assert stopped
        assert (refusal.status_code, refusal.json()["code"]) == (503, "database_unavailable")
        assert "may have been stored or not" in refusal.json()["detail"]
        assert "nothing was changed" not in refusal.json()["detail"]
        answers = []

        def is_answered() -> bool:
            answers.append(submit(client, name))
            return answers[-1].status_code in {200, 202}

        assert until(is_answered)
        assert {answer.status_code for answer in answers[:-1]} <= {409, 503}
        assert submit(client, name).json()["id"] == answers[-1].json()["id"]
        assert _count(db) - before == jobs


def test_a_statement_that_is_only_slow_costs_no_connection(own: Settings) -> None:
    with closing(Database(own.model_copy(update={"connect_seconds": 1.0}), pool_size=1, patience_s=0.0)) as db:
        with db.transaction() as session:
            first = session.scalar(text("SELECT pg_backend_pid()"))
        with pytest.raises(DatabaseUnavailable), db.transaction() as session:
            session.execute(text("SELECT pg_sleep(30)"))
        with db.transaction() as session:
            assert session.scalar(text("SELECT pg_backend_pid()")) == first


def _count(db: Database) -> int:
    with db.transaction() as session:
        return session.scalar(select(func.count()).select_from(JobRow)) or 0
