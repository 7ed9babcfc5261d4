"""The real process of a gpu worker, in the middle of a render: killed, told to stop, and told twice."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from redis import Redis
from sqlalchemy import select

from shared.infra import broker
from shared.infra.db import Database
from shared.infra.tables import JobRow, WorkerRow
from shared.jobs import lifecycle, rescue
from shared.settings import Settings
from shared.vocabulary.states import JobState
from tests.chaos import marked, proxy, sketch
from tests.chaos.proxy import Mode
from tests.chaos.shelves import Shelves
from tests.support import recolored, studio, waiting
from tests.support.factories import DEMO, params
from tests.support.waiting import LIMIT_S
from worker.courier import maintenance

TICK_S = 0.1
LEASE_S = 3.0


@contextmanager
def process(
    settings: Settings, log: Path, *, drain_s: float, app: str = "worker.gpu", name: str = "w", **more: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker of the demo checkpoint, and ring for it. `more` are further variables of its environment."""
    env = {
        **os.environ,
        "FARM_CHECKPOINT": str(studio.DEMO),
        "FARM_DEVICE": "cpu",
        "FARM_PROFILE_SECONDS": "0",
        "FARM_SNAPSHOT_SECONDS": "0.2",
        "FARM_DRAIN_SECONDS": str(drain_s),
        **more,
    }
    command = [sys.executable, "-m", "celery", "-A", app, "worker", "--pool", "threads", "--concurrency", "1"]
    ring(settings)
    with log.open("wb") as out:
        running = subprocess.Popen([*command, "-n", f"{name}@here"], env=env, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def ring(settings: Settings, checkpoint: str = DEMO) -> None:
    with broker.celery_app(settings) as celery:
        broker.ring(celery, checkpoint)


def until(db: Database, job_id: UUID, running: subprocess.Popen[bytes], what: Callable[[JobRow], bool]) -> JobRow:
    """Look until a job is so, while the process lives."""
    for _ in range(int(LIMIT_S / TICK_S)):
        with db.transaction() as session:
            row = lifecycle.get(session, job_id)
        if what(row):
            return row
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(TICK_S)
    raise TimeoutError(f"after {LIMIT_S:g} s the job is {row.state} at step {row.steps_done}")


def until_logged(log: Path, event: bytes, running: subprocess.Popen[bytes]) -> None:
    """Look until a worker has logged something, while it lives."""
    for _ in range(int(LIMIT_S / TICK_S)):
        if event in log.read_bytes():
            return
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(TICK_S)
    raise TimeoutError(f"after {LIMIT_S:g} s there is no {event!r} in the log")


def test_the_doorbells_of_a_whole_folder_are_heard(
    settings: Settings, db: Database, redis: Redis, tmp_path: Path
) -> None:
    log, folder, names = tmp_path / "worker.log", tmp_path / "checkpoints", []
    folder.mkdir()
    for index in (5, 17):
        recolored.write(folder, index)
        names.append(recolored.name(index))
    with process(settings, log, drain_s=0.1, FARM_CHECKPOINT="", FARM_CHECKPOINT_DIR=str(folder)) as running:
        for name in names:
            with db.transaction() as session:
                job_id = lifecycle.submit(session, params(checkpoint=name), max_attempts=1).id
            ring(settings, name)
            until(db, job_id, running, lambda row: row.state == JobState.SUCCEEDED)
            assert waiting.until(lambda name=name: broker.waiting_doorbells(redis, name) == 0)  # type: ignore[misc]


@pytest.mark.usefixtures("redis")
def test_a_render_outlives_its_workers(settings: Settings, db: Database, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    with db.transaction() as session:
        job_id = lifecycle.submit(session, params(steps=150, width=512, height=512), max_attempts=3).id

    with process(settings, log, drain_s=60) as killed:
        until_logged(log, b"snapshot.kept", killed)  # the row names a snapshot before there is one
        row = until(db, job_id, killed, lambda row: row.steps_done > 0)
        killed.kill()
    with db.transaction() as session:
        assert rescue.take_over(session, str(row.worker_id)) == [(job_id, JobState.QUEUED)]

    with process(settings, log, drain_s=0.1) as drained:
        row = until(db, job_id, drained, lambda row: row.steps_done > row.resumed_from_step > 0)
        assert row.attempt == 2
        drained.send_signal(signal.SIGTERM)
        assert drained.wait(LIMIT_S) == 0
    with db.transaction() as session:
        row = lifecycle.get(session, job_id)
    assert (row.state, row.snapshot_attempt, row.faults) == (JobState.QUEUED, 2, 1)

    with process(settings, log, drain_s=3600) as told_twice:
        until(db, job_id, told_twice, lambda row: row.state == JobState.RUNNING)
        told_twice.send_signal(signal.SIGTERM)
        until_logged(log, b"worker.draining", told_twice)
        told_twice.send_signal(signal.SIGTERM)
        assert told_twice.wait(LIMIT_S) != 0
    with db.transaction() as session:
        assert lifecycle.get(session, job_id).state == JobState.RUNNING  # until its lease is over


def test_the_checkpoints_of_a_worker_that_dies_are_served_by_another(
    settings: Settings, db: Database, redis: Redis, tmp_path: Path
) -> None:
    """Once its lease is over: those that it rendered, and those that it was a home of."""
    lease = {"FARM_LEASE_SECONDS": str(LEASE_S), "FARM_HEARTBEAT_SECONDS": "0.5", "FARM_CHECKPOINT": ""}
    shelves = Shelves(tmp_path, ("dies", "lives"), seed=1)
    with ExitStack() as running:

        def start(name: str) -> subprocess.Popen[bytes]:
            own = {sketch.NAME_VARIABLE: name, "FARM_CHECKPOINT_DIR": str(shelves.folder(name))}
            env = {**lease, **own, sketch.AMBUSH_VARIABLE: str(tmp_path), sketch.STEP_VARIABLE: "0.02"}
            log = tmp_path / f"{name}.log"
            return running.enter_context(
                process(settings, log, drain_s=0, app="tests.chaos.swapping_gpu", name=name, **env)
            )

        dying, living = start("dies"), start("lives")
        for log, one in ((tmp_path / "dies.log", dying), (tmp_path / "lives.log", living)):
            until_logged(log, b"worker.ready", one)
        jobs = [submitted(db, checkpoint, steps=100) for checkpoint in marked.NAMES]
        for checkpoint in marked.NAMES:
            ring(settings, checkpoint)
        assert waiting.until(lambda: {"dies@here", "lives@here"} <= at_work(db))
        dying.kill()
        dying.wait()
        jobs += [submitted(db, checkpoint, steps=1) for checkpoint in marked.NAMES]

        def have_all_succeeded() -> bool:
            maintenance.rescue_lost_jobs(db, redis, lease_s=LEASE_S)
            with db.transaction() as session:
                return all(lifecycle.get(session, job).state == JobState.SUCCEEDED for job in jobs)

        assert waiting.until(have_all_succeeded)
    with db.transaction() as session:
        assert {lifecycle.get(session, job).worker_id for job in jobs[len(marked.NAMES) :]} == {"lives@here"}


def submitted(db: Database, checkpoint: str, *, steps: int) -> UUID:
    with db.transaction() as session:
        job = params(checkpoint=checkpoint, steps=steps, width=64, height=64)
        return lifecycle.submit(session, job, max_attempts=3).id


def at_work(db: Database) -> set[str | None]:
    """Who runs a job."""
    with db.transaction() as session:
        return set(session.scalars(select(JobRow.worker_id).where(JobRow.state == JobState.RUNNING)))


@pytest.mark.usefixtures("redis")
def test_a_silent_store_does_not_hold_up_a_drain(settings: Settings, db: Database, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    store = urlsplit(str(settings.s3_endpoint_url))
    assert store.port is not None
    sketched = {sketch.AMBUSH_VARIABLE: str(tmp_path), sketch.NAME_VARIABLE: "w", sketch.STEP_VARIABLE: "0"}
    with proxy.before(store.port) as (door,):
        env = {**sketched, "FARM_S3_ENDPOINT_URL": f"http://127.0.0.1:{door.port}"}
        with process(settings, log, drain_s=0, app="tests.chaos.gpu", **env) as worker:
            until_logged(log, b"worker.ready", worker)
            with door.misbehaving(Mode.HOLE):
                with db.transaction() as session:
                    job_id = lifecycle.submit(session, params(steps=1), max_attempts=3).id
                ring(settings)
                until(db, job_id, worker, lambda row: row.steps_done == row.steps_total)
                worker.send_signal(signal.SIGTERM)
                assert worker.wait(LIMIT_S) == 0
    with db.transaction() as session:
        row = lifecycle.get(session, job_id)
        assert (row.state, row.attempt, row.faults, row.suspect) == (JobState.QUEUED, 1, 0, False)
        assert session.scalars(select(WorkerRow.id)).all() == []
    assert b"job.slot_overdue" in log.read_bytes()
