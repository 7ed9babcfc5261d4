"""Day-two operations on a farm of real processes that work all the while, by the commands of the runbooks.

Its schema is one migration newer than its code, as in the middle of a rolling upgrade: whatever works here works then.
"""

import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from shared import migrations
from shared.settings import Settings
from tests.support import pages
from tests.support.factories import DEMO
from tests.support.site import LONG_STEPS, Site, opened, place
from tests.support.waiting import LIMIT_S, until

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


@pytest.fixture(scope="module")
def site(engines: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site with a worker, `gpu0@here`."""
    with (
        _newer(engines),
        opened(engines, tmp_path_factory.mktemp("site")) as site,
        site.start("gpu0@here"),
    ):
        site.ready(DEMO, 1)
        yield site


def test_processes_start_and_work_on_a_newer_schema(site: Site, engines: Settings) -> None:
    assert "revision next, newer than this code" in pages.run("upgrade.md", "migrate", site.env())
    assert migrations.current(engines.database_url.get_secret_value()) == "next"
    assert site.until(site.submit(), "succeeded")["worker"] == "gpu0@here"


def test_a_checkpoint_is_added_while_a_worker_serves(site: Site, tmp_path: Path) -> None:
    with site.start("gpu1@here", "") as worker:  # restricted to nothing: it serves the whole folder
        site.ready(DEMO, 2)
        arrived = place(tmp_path / "another.safetensors")
        shutil.copytree(arrived.with_suffix(".config"), site.checkpoints / "another.config")
        pages.run("checkpoint.md", "checkpoint", site.env(NEW_CHECKPOINT=str(arrived)))
        assert until(
            lambda: "another" in {one["name"] for one in site.http.get("/v1/checkpoints").json()["checkpoints"]}
        )
        pictures = tmp_path / "pictures"
        shown = pages.run("checkpoint.md", "verify", site.env(NAME="another", PICTURES=str(pictures)))
        assert "\nanother\t" in shown
        assert [file.suffix for file in pictures.iterdir()] == [".png"]
        assert site.until(site.submit(checkpoint="another"), "succeeded")["worker"] == "gpu1@here"
        assert worker.poll() is None


def test_a_drained_worker_leaves_and_its_job_goes_on(site: Site) -> None:
    site.place("drained")
    with site.start("gpu2@here", "drained") as one, site.start("gpu3@here", "drained") as two:
        workers = {"gpu2@here": one, "gpu3@here": two}
        site.ready("drained", 2)
        job = site.submit(checkpoint="drained", steps=LONG_STEPS)
        first = site.until(job, "running")["worker"]
        pages.run("drain.md", "drain", site.env(WORKER=first))
        assert workers.pop(first).wait(LIMIT_S) == 0
        done = site.until(job, "succeeded")
        assert done["worker"] == next(iter(workers))
        assert done["attempt"] == 2

        # As `systemctl stop` does, with nobody left to go on.
        last = site.submit(checkpoint="drained", steps=LONG_STEPS)
        site.until(last, "running")
        (left,) = workers.values()
        left.send_signal(signal.SIGTERM)
        assert left.wait(LIMIT_S) == 0
        assert site.job(last)["state"] == "queued"
    site.http.post(f"/v1/jobs/{last}/cancel")


def test_why_a_job_failed_is_found(site: Site) -> None:
    job = site.submit(steps=LONG_STEPS, timeout=1)
    site.until(job, "failed")
    courier = site.folder / "courier" / "stdout"
    assert until(lambda: b"job.time_is_up" in courier.read_bytes())  # told after the row
    logs = " ".join(str(site.folder / name / "stdout") for name in ("courier", "gpu0@here"))
    told = pages.run("failed.md", "failed", site.env(JOB=job))
    assert told.startswith("JOB\t")
    assert told.splitlines()[-1].endswith("[run_timeout]")
    assert "gpu0@here" in told
    lines = pages.run("failed.md", "logs", site.env(JOB=job, LOGS=logs)).splitlines()
    assert any("run_timeout" in line or "time_is_up" in line for line in lines)
    told_of = [json.loads(line) for line in lines]
    (claimed,) = [one for one in told_of if one["event"] == "job.claimed"]
    assert (claimed["job_id"], claimed["attempt"], claimed["worker"]) == (job, 1, "gpu0@here")


@contextmanager
def _newer(settings: Settings) -> Iterator[None]:
    """Bring the database to a schema that this code does not know, and back."""
    _execute(settings, NEWER)
    try:
        yield
    finally:
        _execute(settings, AS_BEFORE.replace("%s", f"'{migrations.head()}'"))


def _execute(settings: Settings, sql: str) -> None:
    url = settings.database_url.get_secret_value().replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True, options="-c lock_timeout=10000") as connection:
        connection.execute(sql)
