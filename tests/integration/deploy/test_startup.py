"""What each process says when it is started wrongly: one line with the fix, and an exit status that its supervisor heeds."""

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Self

import psycopg
import pytest
import torch
from pydantic import SecretStr

from api.cli import checks
from api.cli.migrate import migrate
from api.cli.output import Failure
from deploy.standalone import ports
from shared.errors import NoBucket, StorageRefused, StorageUnavailable
from shared.fleet import registry
from shared.infra.db import Database
from shared.infra.storage import Storage
from shared.jobs import lifecycle
from shared.settings import Settings
from shared.vocabulary.states import JobState
from tests.chaos import sketch
from tests.support import parts, studio
from tests.support.factories import DEMO, params
from tests.support.servers import Handler, Server
from tests.support.waiting import LIMIT_S, until

CELERY = ("-m", "celery", "-A")
SLOTS = ("worker", "--pool", "threads", "--concurrency", "1", "-n", "bad@here")
WORKER, COURIER = (*CELERY, "worker.gpu", *SLOTS), (*CELERY, "worker.cpu", *SLOTS)
SKETCHER = (*CELERY, "tests.chaos.gpu", *SLOTS)
API = ("-m", "api.serve")
MIGRATE = ("-c", "import sys; from api.cli import main; sys.exit(main(['migrate']))")
KEYS = ("-c", "import sys; from api.cli import main; sys.exit(main(['keys', 'list']))")
DOCTOR = ("-c", "import sys; from api.cli import main; sys.exit(main(['doctor']))")
NOWHERE = "postgresql://farm:s3same@127.0.0.1:9/farm"


@pytest.mark.parametrize(
    ("process", "name", "value", "says"),
    [
        (SKETCHER, "FARM_DATABASE_URL", NOWHERE, "check FARM_DATABASE_URL"),
        (COURIER, "FARM_REDIS_URL", "nonsense", "FARM_REDIS_URL"),
        (
            SKETCHER,
            "FARM_REDIS_URL",
            "rediss://:s3same@127.0.0.1/0?ssl_cert_reqs=maybe",
            "FARM_REDIS_URL: ssl_cert_reqs is",
        ),
        (
            API,
            "FARM_REDIS_URL",
            "rediss://:s3same@127.0.0.1/0?ssl_ca_certs=none.pem",
            "ssl_ca_certs=none.pem cannot be used",
        ),
        (API, "FARM_LEASE_SECONDS", "-1", "FARM_LEASE_SECONDS"),
        (API, "FARM_S3_ENDPOINT_URL", "nonsense", "FARM_S3_ENDPOINT_URL"),
        (API, "FARM_ROOT_PATH", "sd", "FARM_ROOT_PATH: this is not a path like /sd"),
        (API, "FARM_ALLOWED_HOSTS", "https://a.example", "FARM_ALLOWED_HOSTS: 'https://a.example' is not a name"),
        (API, "FARM_STYLES_FILE", "none.csv", "FARM_STYLES_FILE: none.csv cannot be read (No such file"),
        (SKETCHER, "FARM_S3_SECRET_ACCESS_KEY", "s3same-s3same", "check FARM_S3_SECRET_ACCESS_KEY"),
        (MIGRATE, "FARM_DATABASE_URL", NOWHERE, "check FARM_DATABASE_URL"),
        (KEYS, "FARM_DATABASE_URL", NOWHERE, "Connection refused; start Postgres, or check FARM_DATABASE_URL"),
        (KEYS, "FARM_S3_ENDPOINT_URL", "s3same", "FARM_S3_ENDPOINT_URL"),
        (DOCTOR, "FARM_S3_ENDPOINT_URL", "s3same", "FARM_S3_ENDPOINT_URL: this is not a URL"),
    ],
)
@pytest.mark.usefixtures("settings")
def test_a_process_says_what_is_wrong_and_ends(process: tuple[str, ...], name: str, value: str, says: str) -> None:
    status, said = started(process, **{name: value})
    assert status == 1
    assert says in said
    assert "Traceback" not in said
    assert "s3same" not in said


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_is_not_utf8_is_refused_in_one_line(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    url = settings.database_url.get_secret_value()
    name = f"odd_{encoding.lower()}"
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name}")
        connection.execute(
            f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0"
        )
    monkeypatch.setenv("FARM_DATABASE_URL", f"{url.rpartition('/')[0]}/{name}")
    finding = checks.postgres()
    assert (finding.level, f"is encoded as {encoding}" in finding.detail) == (checks.Level.FAIL, True)
    with pytest.raises(Failure, match=f"was not migrated: .* is encoded as {encoding}.* ENCODING 'UTF8'"):
        migrate()
    with ThreadPoolExecutor() as threads:
        for status, said in threads.map(started, (API, COURIER, SKETCHER) if encoding == "LATIN1" else ()):
            assert (status, "Traceback" in said) == (1, False), said
            assert len([line for line in said.splitlines() if "ENCODING 'UTF8'" in line]) == 1


@pytest.mark.parametrize("process", [SKETCHER, COURIER, API], ids=["worker", "courier", "api"])
@pytest.mark.usefixtures("settings")
def test_a_port_that_is_taken_ends_a_process(process: tuple[str, ...], db: Database, tmp_path: Path) -> None:
    sketching = {sketch.AMBUSH_VARIABLE: str(tmp_path), sketch.NAME_VARIABLE: "sketch", sketch.STEP_VARIABLE: "0"}
    with socket.create_server(("", 0)) as taken:
        status, said = started(process, FARM_METRICS_PORT=str(taken.getsockname()[1]), **sketching)
    assert status == 1
    assert "Give each process of a machine its own" in said
    assert "Traceback" not in said
    with db.transaction() as session:
        assert not registry.workers(session, silent_after_s=60)


STUCK = """
import threading

from tests.chaos import sketch

load = sketch.load


def stuck(*parts):
    bundle = load(*parts)
    bundle.engine.stop = threading.Event().wait
    return bundle


sketch.load = stuck
from tests.chaos.gpu import app
"""


@pytest.mark.usefixtures("settings", "redis")
def test_a_worker_that_cannot_start_says_why_even_if_its_device_hangs(tmp_path: Path) -> None:
    (tmp_path / "stuck.py").write_text(STUCK)
    with socket.create_server(("", 0)) as taken:
        changes = {"FARM_METRICS_PORT": str(taken.getsockname()[1]), "PYTHONPATH": f"{tmp_path}:{parts.ROOT}"}
        with parts.running((*CELERY, "stuck", *SLOTS), tmp_path, changes) as running:
            assert until(lambda: "worker.cannot_start" in (tmp_path / "stdout").read_text())
            assert running.poll() is None


@pytest.mark.usefixtures("settings", "redis")
def test_a_courier_works_whatever_pool_celery_would_choose(db: Database, tmp_path: Path) -> None:
    """A pool of forked processes would answer each tick where no courier was opened, and do nothing."""
    with db.transaction() as session:
        job_id = lifecycle.submit(session, params(), max_attempts=3).id
        assert lifecycle.claim_next(session, DEMO, "lost@here", lease_s=0)

    def state() -> str:
        with db.transaction() as session:
            return lifecycle.get(session, job_id).state

    with parts.running((*CELERY, "worker.cpu", "worker", "-n", "courier@here", "--beat"), tmp_path):
        assert until(lambda: state() == JobState.QUEUED)


@pytest.mark.parametrize("process", [(*parts.API, "0"), parts.COURIER], ids=["api", "courier"])
@pytest.mark.usefixtures("settings")
def test_what_does_not_answer_at_the_start_is_told_and_waited_for(process: tuple[str, ...], tmp_path: Path) -> None:
    wrong = {"FARM_DATABASE_URL": NOWHERE, "FARM_S3_SECRET_ACCESS_KEY": "s3same-s3same", "FARM_CONNECT_SECONDS": "30"}
    with parts.running(process, tmp_path, wrong) as running:

        def missing() -> dict[str, str]:
            lines = [json.loads(line) for line in (tmp_path / "stdout").read_text().splitlines() if line[:1] == "{"]
            told = [line for line in lines if line["event"] == "dependency.missing"]
            return {line["dependency"]: f"{line['error']} {line.get('fix', '')}" for line in told}

        assert until(lambda: len(missing()) == 2)
        assert "check FARM_DATABASE_URL" in missing()["postgres"]
        assert "check FARM_S3_SECRET_ACCESS_KEY" in missing()["storage"]
        assert running.poll() is None
    assert "s3same" not in (tmp_path / "stdout").read_text() + (tmp_path / "stderr").read_text()


def test_a_wrong_password_is_told_from_a_database_that_is_down(settings: Settings) -> None:
    status, said = started(MIGRATE, FARM_DATABASE_URL=_mistaken(settings.database_url))
    assert status == 1
    assert "check FARM_DATABASE_URL" in said
    assert "password authentication failed" in said
    assert "s3same" not in said
    assert "Traceback" not in said


def test_a_wrong_password_of_redis_is_told_and_tried_again(settings: Settings, tmp_path: Path) -> None:
    """Without Redis the api goes on; its supervisor has nothing to do."""
    wrong = {"FARM_REDIS_URL": _mistaken(settings.redis_url)}
    with parts.running((*parts.API, str(ports.pick("127.0.0.1"))), tmp_path, wrong) as api:
        assert until(lambda: "check FARM_REDIS_URL" in (tmp_path / "stdout").read_text())
        assert api.poll() is None
    said = (tmp_path / "stdout").read_text() + (tmp_path / "stderr").read_text()
    assert "invalid username-password pair" in said
    assert "s3same" not in said


def _mistaken(url: SecretStr) -> str:
    """Return an engine's address with a password that is wrong."""
    scheme, rest = url.get_secret_value().split("://")
    user, place = rest.split("@")
    return f"{scheme}://{user.split(':')[0]}:s3same@{place}"


@pytest.mark.usefixtures("settings")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_missing_driver_ends_its_worker() -> None:
    status, said = started(WORKER, FARM_DEVICE="cuda")
    assert status == 1
    assert "mend the NVIDIA driver" in said
    assert "Traceback" not in said


@pytest.mark.usefixtures("settings")
def test_a_half_downloaded_or_missing_checkpoint_ends_its_worker(tmp_path: Path) -> None:
    half = tmp_path / "half.safetensors"
    half.write_bytes(studio.DEMO.read_bytes()[:100_000])
    for path in (half, tmp_path / "none.safetensors"):
        status, said = started(SKETCHER, FARM_CHECKPOINT=str(path))
        assert (status, str(path) in said, "check FARM_CHECKPOINT" in said, "Traceback" in said) == (
            1,
            True,
            True,
            False,
        )


def test_a_missing_bucket_is_named(settings: Settings) -> None:
    Storage(settings).check()
    with pytest.raises(NoBucket, match="FARM_S3_BUCKET"):
        Storage(settings.model_copy(update={"s3_bucket": "another"})).check()


@pytest.mark.parametrize("act", ["ping", "put"])
def test_a_clock_that_is_wrong_is_named(storage: Storage, monkeypatch: pytest.MonkeyPatch, act: str) -> None:
    """The store is real, and so is its refusal; only this process takes the time to be three hours later."""
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda *_: Ahead.now(UTC).replace(tzinfo=None))
    monkeypatch.setattr("shared.infra.storage.datetime", Ahead)
    with pytest.raises(StorageUnavailable, match="set this machine's clock: timedatectl set-ntp true"):
        storage.ping() if act == "ping" else storage.put("jobs/clock", b"", content_type="image/png")
    with pytest.raises(StorageRefused, match="set this machine's clock"):
        storage.check()


class FarAway(Handler):
    """Refuses as AWS does what is signed for another region than the bucket's; no store that runs here looks at regions."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_HEAD()

    def do_HEAD(self) -> None:
        self.remember()
        if "/eu-central-1/s3/" in self.headers["Authorization"]:
            self.answer(200, Connection="close")
            return
        told = b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-central-1</Region></Error>"
        self.answer(400, told, x_amz_bucket_region="eu-central-1", Connection="close")


def test_a_wrong_region_mends_itself(settings: Settings) -> None:
    server = Server(FarAway)
    try:
        mistaken = {"s3_endpoint_url": server.url, "s3_region": "us-west-2", "s3_bucket": "far"}
        storage = Storage(settings.model_copy(update=mistaken))
        storage.ping()
        storage.put("jobs/far", b"far", content_type="image/png")
    finally:
        server.stop()
    assert [what for what, *_ in server.asked] == ["HEAD /far", "HEAD /far", "PUT /far/jobs/far"]


class Ahead(datetime):
    """A clock three hours fast."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return super().now(tz) + timedelta(hours=3)


def started(process: tuple[str, ...], **changes: str) -> tuple[int, str]:
    """Start a process of the farm with settings changed; return its status and all that it said."""
    env = {
        **os.environ,
        "FARM_CHECKPOINT": str(studio.DEMO),
        "FARM_DEVICE": "cpu",
        "FARM_CONNECT_SECONDS": "30",
        **changes,
    }
    done = subprocess.run(
        [sys.executable, *process], env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    return done.returncode, done.stdout + done.stderr
