"""The embedded engines themselves: they keep their data and their ports whatever happens to them."""

import json
import os
import pwd
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from deploy.standalone import account as accounts
from deploy.standalone import ports, postgres
from deploy.standalone.farm import EmbeddedFarm, StartFailed, UpOptions, engines_only
from deploy.standalone.folder import DataFolder
from deploy.standalone.program import ROOT, Account
from shared.errors import StorageUnavailable
from shared.infra.storage import Storage
from shared.settings import Settings
from tests.support.heard import Heard

NOTHING_REMOTE = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
ENGINES = ("postgres", "redis", "s3")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A data folder outside pytest's own, whose mode pytest insists on."""
    with tempfile.TemporaryDirectory(prefix="farm-test-") as path:
        yield Path(path).resolve() / "data"


@pytest.fixture
def heard() -> Heard:
    return Heard()


def settings(env: dict[str, str]) -> Settings:
    return Settings(**{name.removeprefix("FARM_").lower(): value for name, value in env.items()})  # type: ignore[arg-type]


def plain_url(env: dict[str, str]) -> str:
    return env["FARM_DATABASE_URL"].replace("+psycopg", "")


def write(env: dict[str, str]) -> None:
    with psycopg.connect(plain_url(env), autocommit=True) as connection:
        connection.execute("CREATE TABLE pictures AS SELECT 'red circle' AS title")
    with Redis.from_url(env["FARM_REDIS_URL"]) as redis:
        redis.set("title", "red circle")
    Storage(settings(env)).put("pictures/1", b"red circle", content_type="text/plain")


def assert_written(env: dict[str, str]) -> None:
    with psycopg.connect(plain_url(env)) as connection:
        assert connection.execute("SELECT title FROM pictures").fetchall() == [("red circle",)]
    with Redis.from_url(env["FARM_REDIS_URL"], decode_responses=True) as redis:
        assert redis.get("title") == "red circle"
    assert Storage(settings(env)).get("pictures/1") == b"red circle"


def kill(folder: Path, name: str) -> None:
    running = json.loads((folder / "run.json").read_text())["running"]
    os.kill(next(entry[1] for entry in running if entry[0] == name), signal.SIGKILL)


def test_killed_engines_come_back_on_the_same_ports_with_their_data(folder: Path, heard: Heard) -> None:
    with engines_only(folder, NOTHING_REMOTE, heard) as env:
        write(env)
        for name in ENGINES:
            kill(folder, name)
            heard.next("died", name)
            heard.next("ready", name)
        assert_written(env)


def test_a_second_run_finds_the_same_addresses_and_data(folder: Path) -> None:
    with engines_only(folder, NOTHING_REMOTE) as first:
        write(first)
    with engines_only(folder, NOTHING_REMOTE) as second:
        assert second == first
        assert_written(second)


def test_a_run_after_a_broken_initdb_starts_afresh(folder: Path) -> None:
    (folder / "pg.new").mkdir(parents=True)
    (folder / "pg.new" / "PG_VERSION").write_text("18\n")
    with engines_only(folder, NOTHING_REMOTE) as env:
        write(env)
        assert not (folder / "pg.new").exists()
        assert not (folder / "pg.password").exists()


def test_a_recycled_pid_in_the_pid_file_does_not_block_postgres(folder: Path) -> None:
    with engines_only(folder, NOTHING_REMOTE):
        pid_file = (folder / "pg" / "postmaster.pid").read_text().splitlines()
    owner = (folder / "pg").stat()
    identity = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    with subprocess.Popen(["sleep", "600"], cwd="/", **identity) as stranger:  # type: ignore[call-overload]
        stale = folder / "pg" / "postmaster.pid"
        stale.write_text("\n".join([str(stranger.pid), *pid_file[1:]]) + "\n")
        os.chown(stale, owner.st_uid, owner.st_gid)
        with engines_only(folder, NOTHING_REMOTE) as env:
            write(env)
        assert stranger.poll() is None
        stranger.kill()


def test_a_wrong_password_is_refused_by_every_engine(folder: Path) -> None:
    with engines_only(folder, NOTHING_REMOTE) as env:
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(plain_url(env), password="wrong")
        with Redis.from_url(env["FARM_REDIS_URL"]) as redis:
            redis.connection_pool.connection_kwargs["password"] = "wrong"
            with pytest.raises(AuthenticationError):
                redis.ping()
        forged = Storage(settings({**env, "FARM_S3_SECRET_ACCESS_KEY": "wrong-secret"}))
        with pytest.raises(StorageUnavailable, match="SignatureDoesNotMatch"):
            forged.put("pictures/2", b"", content_type="text/plain")


def test_secrets_are_readable_by_their_owner_alone_and_in_no_command_line(folder: Path) -> None:
    with engines_only(folder, NOTHING_REMOTE):
        secrets = json.loads((folder / "secrets.json").read_text()).values()
        running = json.loads((folder / "run.json").read_text())["running"]
        commands = b"".join(Path(f"/proc/{entry[1]}/cmdline").read_bytes() for entry in running)
        assert len(secrets) == 3
        assert not [secret for secret in secrets if secret.encode() in commands]
    for file in ("secrets.json", "redis/redis.conf"):
        assert stat.S_IMODE((folder / file).stat().st_mode) == 0o600
    for inside in ("pg", "redis", "s3", "logs"):
        assert stat.S_IMODE((folder / inside).stat().st_mode) == 0o700


def test_a_second_farm_on_the_same_folder_is_refused(folder: Path) -> None:
    with (
        engines_only(folder, NOTHING_REMOTE),
        pytest.raises(StartFailed) as refused,
        engines_only(folder, NOTHING_REMOTE),
    ):
        pass
    assert str(refused.value) == (
        f"Another farm (process {os.getpid()}) already runs on {folder}; stop it, or choose another folder with --data-dir."
    )


def test_a_taken_port_is_refused_before_anything_starts(folder: Path) -> None:
    port = ports.pick("127.0.0.1")
    with ports.listen("127.0.0.1", port), pytest.raises(StartFailed) as refused:
        EmbeddedFarm(UpOptions(port=port, data_dir=folder, environ=NOTHING_REMOTE)).start()
    assert (
        str(refused.value)
        == f"Port {port} on 127.0.0.1 cannot be used: Address already in use. Choose another with --port."
    )
    assert not folder.exists()


def test_remote_engines_are_used_instead_of_embedded_ones(folder: Path, heard: Heard) -> None:
    remote = {"FARM_REDIS_URL": "redis://elsewhere/0", "FARM_S3_ENDPOINT_URL": "https://s3.elsewhere"}
    with engines_only(folder, {**NOTHING_REMOTE, **remote}, heard) as env:
        assert list(env) == ["FARM_DATABASE_URL"]
        assert [entry[0] for entry in json.loads((folder / "run.json").read_text())["running"]] == ["postgres"]


def test_damaged_secrets_are_named(folder: Path) -> None:
    folder.mkdir()
    (folder / "secrets.json").write_text("{")
    with pytest.raises(StartFailed, match=r"secrets\.json is damaged"), engines_only(folder, NOTHING_REMOTE):
        pass


@as_root
def test_from_root_postgres_runs_as_someone_else(folder: Path) -> None:
    folder.parent.chmod(0o700)
    with engines_only(folder, NOTHING_REMOTE):
        owner = (folder / "pg").stat().st_uid
        running = json.loads((folder / "run.json").read_text())["running"]
        server = next(entry[1] for entry in running if entry[0] == "postgres")
        assert owner == Path(f"/proc/{server}").stat().st_uid != 0
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o701


@as_root
def test_programs_that_the_account_cannot_reach_are_copied(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = Account(*pwd.getpwnam("nobody")[2:4])
    folder.mkdir()
    folder.chmod(0o711)
    folder.parent.chmod(0o711)
    monkeypatch.setattr(accounts, "can_run", lambda _program, _account: False)
    binaries = postgres._binaries(DataFolder(folder), nobody)
    monkeypatch.undo()
    assert folder in binaries.parents
    assert accounts.can_run(binaries / "postgres", nobody)
    assert accounts.can_run(binaries / "initdb", nobody)


ORDINARY = """
import os, sys
from pathlib import Path
import tests.integration.deploy.test_engines as t
assert os.geteuid() != 0
folder = Path(sys.argv[1])
with t.engines_only(folder, t.NOTHING_REMOTE) as env:
    t.write(env)
with t.engines_only(folder, t.NOTHING_REMOTE) as env:
    t.assert_written(env)
    print("written as", os.geteuid())
"""


@as_root
def test_an_ordinary_user_can_run_the_engines(folder: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    home = folder.parent
    if not accounts.can_run(Path(sys.executable), Account(nobody.pw_uid, nobody.pw_gid)):
        pytest.skip(f"{sys.executable} lies where other users cannot run it")
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    run = subprocess.run(
        [sys.executable, "-c", ORDINARY, folder],
        user=nobody.pw_uid,
        group=nobody.pw_gid,
        extra_groups=[],
        cwd=home,
        env={"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout == f"written as {nobody.pw_uid}\n", run.stderr
