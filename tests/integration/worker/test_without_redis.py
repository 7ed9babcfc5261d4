"""Workers and couriers whose Redis is out of memory, or away: work goes on, and who asks is told."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from redis import Redis

from api.cli import checks
from api.cli.checks import Level
from api.main import create_app
from shared.infra.db import Database
from shared.jobs import lifecycle
from shared.settings import Settings
from shared.vocabulary.states import JobState
from tests.chaos import sketch
from tests.support import parts, redis_servers
from tests.support.factories import BODY, DEMO
from tests.support.jobs import submit
from tests.support.waiting import LIMIT_S, until

NOWHERE = "redis://127.0.0.1:9/0"
EAGER = """
from worker.slots import lookout

lookout.EVERY_S = 0.3

from tests.chaos.gpu import app
"""


@pytest.fixture(scope="module")
def own_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_servers.running(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def own(own_url: str) -> Iterator[Redis]:
    """A Redis of the test's own, which it may spoil."""
    with Redis.from_url(own_url, decode_responses=True) as redis:
        redis.flushall()
        yield redis
        redis.config_set("maxmemory", 0)
        redis.replicaof("NO", "ONE")


def eager(folder: Path) -> tuple[str, ...]:
    """Return the arguments of a worker that looks for jobs often."""
    (folder / "eager.py").write_text(EAGER)
    return (*parts.CELERY, "eager", *parts.SLOTS, "gpu0@here")


def state(db: Database, job_id: UUID) -> str:
    with db.transaction() as session:
        return lifecycle.get(session, job_id).state


@pytest.mark.usefixtures("announced")
def test_work_goes_on_while_redis_is_out_of_memory(
    settings: Settings, db: Database, own: Redis, own_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the start of a worker, and again while it listens."""
    monkeypatch.setenv("FARM_REDIS_URL", own_url)
    here = settings.model_copy(update={"redis_url": SecretStr(own_url)})
    own.config_set("maxmemory", 1)
    with (
        parts.running(eager(tmp_path), tmp_path, {"PYTHONPATH": f"{tmp_path}:{parts.ROOT}"}) as worker,
        TestClient(create_app(here)) as client,
    ):

        def rendered(times: int) -> bool:
            jobs = [UUID(client.post("/v1/jobs", json=BODY).json()["id"]) for _ in range(times)]
            return until(lambda: {state(db, job) for job in jobs} == {JobState.SUCCEEDED})

        def complaints() -> int:
            return (tmp_path / "stdout").read_text().count("maxmemory")

        assert rendered(5)
        assert until(lambda: "Cannot connect" in (tmp_path / "stdout").read_text())
        assert told(client) == (503, False, Level.FAIL)

        own.config_set("maxmemory", 0)
        assert until(lambda: is_heard(own))
        assert told(client) == (200, True, Level.OK)
        assert rendered(1)

        before = complaints()
        own.config_set("maxmemory", 1)
        assert until(lambda: complaints() > before)
        assert rendered(5)
        assert "Traceback" not in (tmp_path / "stdout").read_text()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(LIMIT_S) == 0


def told(client: TestClient) -> tuple[int, bool, Level]:
    """What is said of Redis by /readyz, by the metrics and by the doctor."""
    ready, found = client.get("/readyz"), checks.redis()
    if ready.status_code == 503:
        assert "out of memory" in ready.json()["dependencies"]["redis"]["detail"]
        assert "out of memory" in found.detail
        assert "maxmemory" in found.fix
    return ready.status_code, "farm_redis_up 1.0" in client.get("/metrics").text, found.level


def is_heard(redis: Redis) -> bool:
    """Whether a worker waits for doorbells."""
    return any(client["cmd"] == "brpop" for client in redis.client_list())


def test_a_replica_is_no_place_for_doorbells(own: Redis, own_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_REDIS_URL", own_url)
    own.replicaof("127.0.0.1", "9")
    found = checks.redis()
    assert (found.level, "read-only replica" in found.detail, "primary" in found.fix) == (Level.FAIL, True, True)


def test_work_goes_on_without_redis(db: Database, tmp_path: Path) -> None:
    """A courier that nobody asks puts a lost job back, a worker that nobody rings for finds it; both end when they are told."""
    lost = submit(db)
    with db.transaction() as session:
        assert lifecycle.claim_next(session, DEMO, "lost@here", lease_s=0)
    away = {
        "FARM_REDIS_URL": NOWHERE,
        "FARM_DRAIN_SECONDS": "0",
        "PYTHONPATH": f"{tmp_path}:{parts.ROOT}",
        sketch.STEP_VARIABLE: "0.1",
    }
    with ExitStack() as farm:
        (tmp_path / "courier").mkdir()
        courier = farm.enter_context(parts.running(parts.COURIER, tmp_path / "courier", away))
        worker = farm.enter_context(parts.running(eager(tmp_path), tmp_path, away))
        assert until(lambda: state(db, lost) == JobState.SUCCEEDED)
        long = submit(db, steps=150)
        assert until(lambda: state(db, long) == JobState.RUNNING)
        for process in (worker, courier):
            process.send_signal(signal.SIGTERM)
        assert [process.wait(LIMIT_S) for process in (worker, courier)] == [0, 0]
        assert state(db, long) == JobState.QUEUED
