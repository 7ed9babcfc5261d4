"""The real process of a gpu worker, in the middle of a render: killed, told to stop, and told twice."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from tests.chaos import proxy, sketch
from tests.chaos.proxy import Mode
from tests.support import recolored, studio, waiting
from tests.support.factories import DEMO, params
from tests.support.waiting import LIMIT_S

TICK_S = 0.1


@contextmanager
def process(
    settings: Settings, log: Path, *, drain_s: float, app: str = "worker.gpu", **more: str
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
        running = subprocess.Popen([*command, "-n", "w@here"], env=env, stdout=out, stderr=subprocess.STDOUT)
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
