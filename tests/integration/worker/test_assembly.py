"""Assembly of a gpu worker and of a courier: the result is finished and immutable, or nothing is left open."""

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import FrozenInstanceError, fields, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from redis import Redis
from sqlalchemy import func, select, update

import worker as package
from deploy.standalone import ports
from shared.errors import FarmError, WorkerUnfit
from shared.infra.db import Database
from shared.infra.metrics import Board, PortTaken
from shared.infra.tables import JobRow, WorkerRow
from shared.jobs import lifecycle
from shared.settings import Settings
from shared.vocabulary.states import JobState
from tests.chaos import sketch
from tests.support import studio
from tests.support.factories import DEMO, params
from worker import assembly
from worker.assembly import GpuWorker
from worker.courier import assembly as courier_assembly
from worker.health import canaries
from worker.health.canaries import CanaryResult
from worker.health.fitness import Proof

NAME = "gpu0@test"


@pytest.fixture
def settings(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a worker whose device only sketches."""
    monkeypatch.setitem(sys.modules, "worker.device", sketch)
    monkeypatch.setattr(package, "device", sketch, raising=False)
    monkeypatch.setenv(sketch.AMBUSH_VARIABLE, str(tmp_path))
    monkeypatch.setenv(sketch.NAME_VARIABLE, "w")
    monkeypatch.setenv(sketch.STEP_VARIABLE, "0")
    return settings.model_copy(update={"checkpoint": str(studio.DEMO), "progress_seconds": 0.01, "drain_seconds": 0})


@pytest.fixture(autouse=True)
def _no_thread_is_left(redis: Redis) -> Iterator[None]:
    assert redis.ping()
    before = set(threading.enumerate())
    yield
    for one in set(threading.enumerate()) - before:
        if isinstance(one, threading.Timer):
            one.join()
    assert [one.name for one in set(threading.enumerate()) - before] == []


@pytest.fixture
def busy_port() -> Iterator[int]:
    port = ports.pick("127.0.0.1")
    stop = Board().serve(port)
    yield port
    stop()


def assembled(settings: Settings, celery: Celery, slots: int = 1) -> GpuWorker:
    """Assemble a worker as its process does: on an error, what was opened is closed."""
    with ExitStack() as opened:
        return assembly.assemble(settings, celery, NAME, slots, opened)


def submit(db: Database) -> None:
    with db.transaction() as session:
        lifecycle.submit(session, params(), max_attempts=3)


def states(db: Database) -> list[JobState]:
    with db.transaction() as session:
        return list(session.scalars(select(JobRow.state).order_by(JobRow.id)))


def listed(db: Database) -> dict[str, str | None]:
    """The workers in the fleet's list, and why they are unfit."""
    with db.transaction() as session:
        return {row.id: row.unfit for row in session.scalars(select(WorkerRow))}


def test_an_assembled_worker_is_whole_and_answers_until_it_drains(
    settings: Settings, db: Database, celery: Celery
) -> None:
    worker = assembled(settings, celery, slots=2)
    try:
        assert listed(db) == {NAME: None}
        assert all(getattr(worker, part.name) is not None for part in fields(GpuWorker))
        with pytest.raises(FrozenInstanceError):
            worker.drain_s = 1.0  # type: ignore[misc]
        submit(db)
        worker.answer()
        assert states(db) == [JobState.SUCCEEDED]
        submit(db)
        worker.drain()
        worker.answer()
        assert (worker.is_draining, worker.exit_status) == (True, 0)
        assert states(db) == [JobState.SUCCEEDED, JobState.QUEUED]
    finally:
        worker.close()
    assert listed(db) == {}


@pytest.mark.usefixtures("db")
def test_a_worker_drains_before_it_says_so(settings: Settings, celery: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second signal may interrupt the handler of the first anywhere: it must find the worker draining, and end it."""
    worker = assembled(settings, celery)
    found: list[tuple[str, bool]] = []

    class Log:
        def info(self, event: str, **_: Any) -> None:
            found.append((event, worker.is_draining))

    try:
        # Not by structlog's processors: a process whose logs are set up keeps its loggers, and those of a level.
        monkeypatch.setattr(assembly, "log", Log())
        worker.drain()
    finally:
        monkeypatch.undo()
        worker.close()
    assert found == [("worker.draining", True)]


def test_a_worker_takes_over_what_its_former_process_held(settings: Settings, db: Database, celery: Celery) -> None:
    submit(db)
    with db.transaction() as session:
        assert lifecycle.claim_next(session, DEMO, NAME, lease_s=60)
    assembled(settings, celery).close()
    assert states(db) == [JobState.QUEUED]


def test_a_worker_that_cannot_open_a_part_closes_the_others(
    settings: Settings, db: Database, celery: Celery, busy_port: int
) -> None:
    with pytest.raises(PortTaken):
        assembled(settings.model_copy(update={"metrics_port": busy_port}), celery)
    assert listed(db) == {}


def test_a_worker_is_taken_off_the_list_before_its_database_is_closed(
    settings: Settings, db: Database, celery: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last part fails: the first opened must be the last closed."""

    def refuse(*_: Any) -> None:
        assert listed(db) == {NAME: None}
        raise FarmError("no announcer")

    monkeypatch.setattr(assembly, "WeightsAnnouncer", refuse)
    with pytest.raises(FarmError, match="no announcer"):
        assembled(settings, celery)
    assert listed(db) == {}


def test_a_worker_that_fails_its_examination_is_listed_as_unfit(
    settings: Settings, db: Database, celery: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = sketch.load
    weights: Any = SimpleNamespace(
        resident="sketch", sha256=lambda _: "sha256", digest=lambda _: "flipped", are_sound=lambda: True
    )
    proof = Proof("kind", weights)
    monkeypatch.setattr(sketch, "load", lambda *parts: replace(load(*parts), proof=proof))
    with db.transaction() as session:
        canaries.record(session, proof.key("sketch"), "other", CanaryResult("weights", b""))
    with pytest.raises(WorkerUnfit):
        assembled(settings, celery)
    assert listed(db) == {NAME: "The weights in memory are not those of the same file elsewhere."}


def test_an_assembled_courier_does_its_upkeep(settings: Settings, db: Database, celery: Celery) -> None:
    submit(db)
    with db.transaction() as session:
        assert lifecycle.claim_next(session, DEMO, NAME, lease_s=60)
        session.execute(update(JobRow).values(lease_until=func.now() - timedelta(hours=1)))
    courier = courier_assembly.assemble(settings, celery)
    try:
        courier.upkeep()
        courier.forget()
    finally:
        courier.close()
    assert states(db) == [JobState.QUEUED]


def test_a_courier_that_cannot_open_a_part_closes_the_others(
    settings: Settings, celery: Celery, busy_port: int
) -> None:
    with pytest.raises(PortTaken):
        courier_assembly.assemble(settings.model_copy(update={"metrics_port": busy_port}), celery)
