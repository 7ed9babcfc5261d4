"""A disk that is full: every process says so in one line, with the way out, and goes on as soon as there is room.

Small filesystems are mounted where this user may do that; elsewhere those tests are skipped.
"""

import errno
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi.testclient import TestClient
from redis.exceptions import ResponseError
from structlog.testing import CapturingLogger

from api import problems
from api.main import create_app
from deploy.standalone import ports
from deploy.standalone.child import Restarts
from deploy.standalone.farm import engines_only
from deploy.standalone.program import Program
from deploy.standalone.supervisor import Supervisor
from shared import migrations
from shared.errors import BrokerUnavailable, StorageUnavailable, WeightsMissing
from shared.fleet import registry, weights_bucket
from shared.fleet.weights_bucket import BucketFile
from shared.infra import broker
from shared.infra.db import Database
from shared.infra.storage import Storage
from shared.jobs import lifecycle
from shared.settings import Settings
from tests.support import parts
from tests.support.factories import BODY, DEMO, params
from tests.support.headers import SD15, write
from tests.support.waiting import LIMIT_S, until
from worker.library.weights_cache import WeightsCache

LARGE = 400_000


class Disk:
    """A small filesystem."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self) -> None:
        with self._filler.open("wb", buffering=0) as out, suppress(OSError):
            while out.write(bytes(65536)):
                pass

    def clear(self) -> None:
        self._filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Disk]]:
    with ExitStack() as mounted:

        def mount(size: str) -> Disk:
            folder = tmp_path / "small"
            folder.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", str(folder)]
            try:
                done = subprocess.run(command, capture_output=True, timeout=10, check=False)
            except OSError:
                pytest.skip("there is no mount program")
            if done.returncode:
                pytest.skip("this user may not mount")
            mounted.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True, timeout=10)
            return Disk(folder)

        yield mount


def test_engines_without_room_are_told_of_and_used_again(
    disk: Callable[[str], Disk], monkeypatch: pytest.MonkeyPatch
) -> None:
    small, log = disk("160m"), CapturingLogger()
    monkeypatch.setattr(problems, "log", log)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
    with engines_only(small.path / "farm", environ) as env:
        for name, value in {**env, "FARM_AUTH": "none"}.items():
            monkeypatch.setenv(name, value)
        settings = Settings()
        migrations.upgrade(settings.database_url.get_secret_value())
        _announce(settings)
        storage, redis = Storage(settings, tries=1), broker.connect(settings)
        with TestClient(create_app(settings)) as client:
            small.fill()
            answer = _until_refused(client)
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
            assert "no space left on its disk" in answer.json()["detail"]
            assert answer.headers["retry-after"]
            assert "no space left on its disk" in log.calls[0].kwargs["error"]
            with pytest.raises(StorageUnavailable, match="make room"):
                storage.put("jobs/x/1/0.png", bytes(LARGE), content_type="image/png")
            assert until(lambda: _is_full(redis))
            with pytest.raises(BrokerUnavailable, match="no space left on its disk"):
                broker.check(redis)

            small.clear()
            assert until(lambda: client.post("/v1/jobs", json=BODY).status_code == 202)
            storage.put("jobs/x/1/0.png", bytes(LARGE), content_type="image/png")
            assert until(lambda: bool(client.get("/readyz").status_code == 200))
        redis.close()


@pytest.mark.usefixtures("redis")  # no doorbell of another test: the courier's is what it logs
def test_processes_whose_logs_cannot_be_written_go_on(db: Database, tmp_path: Path) -> None:
    with db.transaction() as session:
        job = lifecycle.submit(session, params(), max_attempts=3).id  # nobody rings for it but the courier
    lost = f"farm: logs are lost ({os.strerror(errno.ENOSPC)}): make room where stdout goes"
    port = ports.pick("127.0.0.1")
    with ExitStack() as farm:
        for name, argv in {"api": (*parts.API, str(port)), "courier": parts.COURIER, "gpu": parts.worker()}.items():
            (tmp_path / name).mkdir()
            farm.enter_context(parts.running(argv, tmp_path / name, stdout=Path("/dev/full")))
        client = farm.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S))
        assert until(lambda: _state(client, job) == "succeeded")
        said = [tmp_path / name / "stderr" for name in ("api", "courier", "gpu")]
        # A line may be written after the state that it tells of.
        assert until(lambda: all(lost in path.read_text() for path in said))
    for path in said:
        assert "Traceback" not in path.read_text()
        assert path.read_text().count("logs are lost") == 1


def test_a_farm_without_room_does_not_start(disk: Callable[[str], Disk]) -> None:
    small = disk("2m")
    command = "import sys; from api.cli import main; sys.exit(main(sys.argv[1:]))"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
    done = subprocess.run(
        [sys.executable, "-c", command, "up", "--data-dir", str(small.path / "farm"), "--port", "0", "--device", "cpu"],
        env={**environ, "PYTHONPATH": str(parts.ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "is full" in line
    assert "--data-dir" in line


def test_a_part_that_dies_on_a_full_disk_is_started_again(disk: Callable[[str], Disk], tmp_path: Path) -> None:
    small = disk("64k")
    with Supervisor(tmp_path, small.path / "run.json", restarts=Restarts(pauses_s=(0.0,), slow_s=0.0)) as supervisor:
        supervisor.start(Program("part", ("sleep", "600"), env=dict(os.environ)))
        first = supervisor.pids()["part"]
        small.fill()
        os.kill(first, signal.SIGKILL)
        assert until(lambda: supervisor.pids().get("part", first) != first)


def _announce(settings: Settings) -> None:
    db = Database(settings, pool_size=1)
    with db.transaction() as session:
        registry.announce(
            session, worker_id="gpu0@here", checkpoint=DEMO, size_bytes=1, hostname="test", device="test", slots=4
        )
    db.close()


def _until_refused(client: TestClient) -> Any:
    """Submit until no more fits: pages that the database has already can still be filled."""
    for _ in range(1000):
        answer = client.post("/v1/jobs", json={**BODY, "prompt": os.urandom(900).hex()})
        if answer.status_code != 202:
            return answer
    raise AssertionError("the disk did not fill")


def _is_full(redis: Any) -> bool:
    try:
        redis.set("noise", os.urandom(20_000))
    except ResponseError as error:
        return "No space left" in str(error)
    return False


def _state(client: httpx.Client, job: UUID) -> str | None:
    with suppress(httpx.TransportError):
        state: str | None = client.get(f"/v1/jobs/{job}").json().get("state")
        return state
    return None


def test_weights_that_find_no_room_on_a_disk_are_told_of_with_the_way_out(
    disk: Callable[[str], Disk], storage: Storage, tmp_path: Path
) -> None:
    path = write(tmp_path / "x.safetensors", {**SD15, "cond_stage_model.transformer.bulk": [3_000_000]})
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    file = BucketFile("checkpoint", "full", sha256, path.stat().st_size, datetime.now(UTC))
    weights_bucket.push(storage, file, path, b"", lambda _count: None)
    small = disk("4m")
    cache = WeightsCache(small.path, storage, limit_bytes=10**9)
    small.fill()
    with pytest.raises(WeightsMissing, match="disk is full") as error:
        cache.fetch(file)
    assert str(small.path) in str(error.value)
    assert "FARM_WEIGHTS_CACHE_BYTES" in error.value.fix
    assert not list(small.path.rglob("*.part"))  # it makes room for others
    small.clear()
    assert cache.fetch(file).read_bytes() == path.read_bytes()
    weights_bucket.remove(storage, "checkpoint", "full")
