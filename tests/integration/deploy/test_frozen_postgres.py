"""A Postgres that stands still with its sockets open: all are answered in time, and afterwards nothing is lost or doubled."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from threading import Event

import httpx
import psutil
import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.engine import make_url

from deploy.standalone.farm import engines_only
from shared import migrations
from shared.errors import DatabaseUnavailable
from shared.fleet import registry
from shared.infra.db import Database
from shared.settings import Settings
from tests.support.factories import BODY, DEMO
from tests.support.frozen import frozen, process_of
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
        here = {"database_url": SecretStr(env["FARM_DATABASE_URL"]), "connect_seconds": 3.0}
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

        assert until(lambda: all_can_read(url))
        assert until(lambda: http.get("/readyz").is_success)
        assert http.get(f"/v1/jobs/{submitted}").json()["state"] == "queued"
        assert http.post("/v1/jobs", json=BODY).status_code == 202


def all_can_read(url: str) -> bool:
    with ThreadPoolExecutor(READERS) as threads:
        answers = threads.map(lambda _: httpx.get(f"{url}/v1/jobs", timeout=LIMIT_S), range(READERS))
        return all(answer.is_success for answer in answers)


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


def test_a_statement_that_is_only_slow_costs_no_connection(own: Settings) -> None:
    with closing(Database(own, pool_size=1, patience_s=0.0)) as db:

        def session_id() -> int | None:
            with db.transaction() as session:
                return session.scalar(text("SELECT pg_backend_pid()"))

        def survives() -> bool:
            first = session_id()
            with pytest.raises(DatabaseUnavailable), db.transaction() as session:
                session.execute(text("SELECT pg_sleep(30)"))
            return session_id() == first

        assert until(survives)
