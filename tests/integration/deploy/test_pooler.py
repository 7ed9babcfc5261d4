"""The farm behind PgBouncer, which lends a server's session for one transaction: to few servers, from many clients."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from celery import Celery
from pydantic import SecretStr
from sqlalchemy import text
from structlog.testing import CapturingLogger

from api import problems
from shared.errors import DatabaseUnfit
from shared.infra.db import Database
from shared.settings import Settings
from tests.support.factories import BODY
from tests.support.pooler import pooled
from tests.support.waiting import LIMIT_S, until
from tests.support.workshop import serving, working
from worker.courier.assembly import assemble

CLIENTS, JOBS = 12, 48


@pytest.fixture
def through(settings: Settings, db: Database, tmp_path: Path) -> Iterator[Settings]:  # noqa: ARG001 - an empty one
    """The settings of processes that reach the database through a pooler."""
    with pooled(settings.database_url.get_secret_value(), tmp_path) as url:
        yield settings.model_copy(update={"database_url": SecretStr(url)})


@pytest.mark.usefixtures("redis", "announced")
def test_a_farm_lives_behind_a_pooler(through: Settings, celery: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    log = CapturingLogger()
    monkeypatch.setattr(problems, "log", log)
    with serving(through) as url, working(through), closing(assemble(through, celery)) as courier:
        limits = httpx.Limits(max_connections=CLIENTS)
        with httpx.Client(base_url=url, timeout=LIMIT_S, limits=limits) as http, ThreadPoolExecutor(CLIENTS) as threads:
            submits = threads.map(lambda seed: http.post("/v1/jobs", json={**BODY, "seed": seed}), range(JOBS))
            jobs = {answer.json()["id"]: answer.status_code for answer in submits}
            assert (len(jobs), set(jobs.values())) == (JOBS, {202})

            def ended() -> bool:
                courier.upkeep()
                return all(job["state"] == "succeeded" for job in threads.map(read, jobs))

            def read(job: str) -> dict[str, Any]:
                found: dict[str, Any] = http.get(f"/v1/jobs/{job}").json()
                return found

            assert until(ended)
            assert {(job["attempt"], job["params"]["seed"]) for job in map(read, jobs)} == {(1, n) for n in range(JOBS)}
            courier.forget()
    assert not log.calls


def test_a_lent_session_keeps_nothing(through: Settings, settings: Settings) -> None:
    """Where it is one's own, statements are prepared: that saves a quarter of a claim."""
    prepared = text("SELECT count(*) FROM pg_prepared_statements WHERE statement = 'SELECT 1 AS again'")
    for reached, expected in ((through, 0), (settings, 1)):
        with closing(Database(reached, pool_size=1)) as db:
            with db.transaction() as session:
                for _ in range(10):
                    session.execute(text("SELECT 1 AS again"))
                assert session.scalar(prepared) == expected
                assert session.scalar(text("SHOW statement_timeout")) != "0"
            with db.engine.connect() as connection:  # no transaction of the farm
                assert connection.scalar(text("SHOW statement_timeout")) == "0"


def test_a_pooler_without_transactions_is_refused(settings: Settings, tmp_path: Path) -> None:
    with (
        pooled(settings.database_url.get_secret_value(), tmp_path, mode="statement") as url,
        closing(Database(settings.model_copy(update={"database_url": SecretStr(url)}))) as db,
        pytest.raises(DatabaseUnfit, match="pool_mode=transaction"),
    ):
        db.ping()


def test_an_option_of_other_programs_is_refused_by_name(settings: Settings) -> None:
    wrong = _with(settings, "pgbouncer=true")
    with closing(Database(wrong)) as db, pytest.raises(DatabaseUnfit, match=r'FARM_DATABASE_URL .*"pgbouncer"'):
        db.ping()


def test_what_a_url_wants_prepared_is_decided_by_the_farm(settings: Settings) -> None:
    with closing(Database(_with(settings, "prepare_threshold=0"))) as db:
        db.ping()


def _with(settings: Settings, option: str) -> Settings:
    url = f"{settings.database_url.get_secret_value()}?{option}"
    return settings.model_copy(update={"database_url": SecretStr(url)})
