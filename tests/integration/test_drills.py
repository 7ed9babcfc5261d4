"""Day-two operations on a farm of real processes that work all the while, by the commands of the runbooks.

Its schema is one migration newer than its code, as in the middle of a rolling upgrade: whatever works here works then.
"""

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import text

from shared import migrations
from shared.db import Base, Database
from shared.settings import Settings
from tests import pages, parts, studio
from tests.chaos import sketch
from tests.chaos.farm import until
from tests.factories import DEMO
from tests.workshop import serving

Worker = AbstractContextManager["subprocess.Popen[bytes]"]

WAIT_S = 60.0
BODY = {"checkpoint": DEMO, "prompt": "a red circle", "width": 64, "height": 64, "steps": 4, "sampler": "euler"}
STEP_S = 0.02
LONG_STEPS = 150

# What the next release might bring.
NEWER = """
ALTER TABLE jobs ADD COLUMN mood text, ADD COLUMN bright boolean NOT NULL DEFAULT false;
ALTER TABLE workers ADD COLUMN mood text;
CREATE TABLE moods (word text PRIMARY KEY);
UPDATE alembic_version SET version_num = 'next';
"""
AS_BEFORE = """
ALTER TABLE jobs DROP COLUMN mood, DROP COLUMN bright;
ALTER TABLE workers DROP COLUMN mood;
DROP TABLE moods;
UPDATE alembic_version SET version_num = %s;
"""


@dataclass(frozen=True, slots=True)
class Site:
    """A farm that runs: an api, a courier and a worker, `gpu0@here`, on the first checkpoint of a folder."""

    url: str
    http: httpx.Client
    folder: Path
    worker: "subprocess.Popen[bytes]"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def env(self, **variables: str) -> dict[str, str]:
        return pages.shell(self.folder, FARM_URL=self.url, FARM_CHECKPOINT_DIR=str(self.checkpoints), **variables)

    def start(self, name: str, checkpoint: str) -> "Worker":
        """Return a context in which a further worker runs."""
        own = self.folder / name
        own.mkdir()
        return _worker(name, own, self.checkpoints, checkpoint)

    def submit(self, **changes: Any) -> str:
        answer = self.http.post("/v1/jobs", json={**BODY, **changes})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def job(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"/v1/jobs/{job}").json()
        return found

    def until(self, job: str, state: str) -> dict[str, Any]:
        assert until(lambda: self.job(job)["state"] == state, WAIT_S), self.job(job)
        return self.job(job)

    def ready(self, checkpoint: str, workers: int) -> None:
        def count() -> int:
            served = self.http.get("/v1/checkpoints").json()["checkpoints"]
            return sum(one["ready_workers"] for one in served if one["name"] == checkpoint)

        assert until(lambda: count() == workers, WAIT_S)


@pytest.fixture(scope="module")
def site(engines: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    for name in ("checkpoints", "courier", "gpu0@here"):
        (folder / name).mkdir()
    _place(folder / "checkpoints" / f"{DEMO}.safetensors")
    with ExitStack() as open_:
        open_.enter_context(_newer(engines))
        url = open_.enter_context(serving(engines))
        open_.enter_context(parts.running(parts.COURIER, folder / "courier"))
        worker = open_.enter_context(_worker("gpu0@here", folder / "gpu0@here", folder / "checkpoints", DEMO))
        http = open_.enter_context(httpx.Client(base_url=url, timeout=20))
        found = Site(url, http, folder, worker)
        found.ready(DEMO, 1)
        yield found


def test_processes_start_and_work_on_a_newer_schema(site: Site, engines: Settings) -> None:
    assert "revision next, newer than this code" in pages.run("upgrade.md", "migrate", site.env())
    assert migrations.current(engines.database_url.get_secret_value()) == "next"
    assert site.until(site.submit(), "succeeded")["worker"] == "gpu0@here"


def test_a_checkpoint_is_added_while_a_worker_serves(site: Site, tmp_path: Path) -> None:
    arrived = _place(tmp_path / "another.safetensors")
    shutil.copytree(_config(arrived), site.checkpoints / "another.config")
    pages.run("checkpoint.md", "checkpoint", site.env(NEW_CHECKPOINT=str(arrived)))
    with site.start("gpu1@here", "another"):
        site.ready("another", 1)
        pictures = tmp_path / "pictures"
        shown = pages.run("checkpoint.md", "verify", site.env(NAME="another", PICTURES=str(pictures)))
        assert "another\t1\t" in shown
        assert [file.suffix for file in pictures.iterdir()] == [".png"]
        assert site.until(site.submit(), "succeeded")["worker"] == "gpu0@here"
    assert site.worker.poll() is None


def test_a_drained_worker_leaves_and_its_job_goes_on(site: Site) -> None:
    _place(site.checkpoints / "drained.safetensors")
    with site.start("gpu2@here", "drained") as one, site.start("gpu3@here", "drained") as two:
        workers = {"gpu2@here": one, "gpu3@here": two}
        site.ready("drained", 2)
        job = site.submit(checkpoint="drained", steps=LONG_STEPS)
        first = site.until(job, "running")["worker"]
        pages.run("drain.md", "drain", site.env(WORKER=first))
        assert workers.pop(first).wait(WAIT_S) == 0
        done = site.until(job, "succeeded")
        assert done["worker"] == next(iter(workers))
        assert done["attempt"] == 2

        # As `systemctl stop` does, with nobody left to go on.
        last = site.submit(checkpoint="drained", steps=LONG_STEPS)
        site.until(last, "running")
        (left,) = workers.values()
        left.send_signal(signal.SIGTERM)
        assert left.wait(WAIT_S) == 0
        assert site.job(last)["state"] == "queued"
    site.http.post(f"/v1/jobs/{last}/cancel")


def test_why_a_job_failed_is_found(site: Site) -> None:
    job = site.submit(steps=LONG_STEPS, timeout=1)
    site.until(job, "failed")
    logs = " ".join(str(site.folder / name / "stdout") for name in ("courier", "gpu0@here"))
    told = pages.run("failed.md", "failed", site.env(JOB=job))
    assert told.startswith("JOB\t")
    assert told.splitlines()[-1].endswith("[run_timeout]")
    assert "gpu0@here" in told
    lines = pages.run("failed.md", "logs", site.env(JOB=job, LOGS=logs)).splitlines()
    assert any("run_timeout" in line or "time_is_up" in line for line in lines)


def _place(file: Path) -> Path:
    """Copy the demo checkpoint; unlike an SD1.5 of full size it needs its configuration beside it."""
    shutil.copy(studio.DEMO, file)
    shutil.copytree(_config(studio.DEMO), _config(file))
    return file


def _config(file: Path) -> Path:
    return file.with_suffix(".config")


def _worker(name: str, own: Path, checkpoints: Path, checkpoint: str) -> "Worker":
    changes = {
        "FARM_CHECKPOINT_DIR": str(checkpoints),
        "FARM_CHECKPOINT": checkpoint,
        "FARM_DRAIN_SECONDS": "0.1",
        sketch.STEP_VARIABLE: str(STEP_S),
    }
    return parts.running(parts.worker(name), own, changes)


@contextmanager
def _newer(settings: Settings) -> Iterator[None]:
    """Bring an emptied database to a schema that this code does not know, and back."""
    database = Database(settings, pool_size=1)
    with database.transaction() as session:
        session.execute(text(f"TRUNCATE {', '.join(Base.metadata.tables)}"))
    database.close()
    _execute(settings, NEWER)
    try:
        yield
    finally:
        _execute(settings, AS_BEFORE.replace("%s", f"'{migrations.head()}'"))


def _execute(settings: Settings, sql: str) -> None:
    url = settings.database_url.get_secret_value().replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True, options="-c lock_timeout=10000") as connection:
        connection.execute(sql)
