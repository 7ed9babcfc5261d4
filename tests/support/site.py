"""A farm of real processes at work, as an operator has one before him; its gpu workers only sketch."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from deploy.standalone import ports
from shared.infra.db import Database
from shared.settings import Settings
from tests.chaos import sketch
from tests.support import emptying, pages, parts, studio
from tests.support.factories import DEMO
from tests.support.waiting import LIMIT_S, until
from tests.support.workshop import serving

Worker = AbstractContextManager["subprocess.Popen[bytes]"]

BODY = {"checkpoint": DEMO, "prompt": "a red circle", "width": 64, "height": 64, "steps": 4, "sampler": "euler"}
STEP_S = 0.06
LONG_STEPS = 150  # nine seconds: surely not done when a job of so many is interrupted


@dataclass(frozen=True, slots=True)
class Site:
    """An api and a courier, and a worker for each that is started."""

    url: str
    http: httpx.Client
    folder: Path

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def env(self, **variables: str) -> dict[str, str]:
        return pages.shell(self.folder, FARM_URL=self.url, FARM_CHECKPOINT_DIR=str(self.checkpoints), **variables)

    def start(self, name: str, checkpoint: str = DEMO, *, code: Path = parts.ROOT) -> Worker:
        """Return a context in which a further worker runs."""
        changes = {
            "FARM_CHECKPOINT_DIR": str(self.checkpoints),
            "FARM_CHECKPOINT": checkpoint,
            "FARM_DRAIN_SECONDS": "0.1",
            sketch.STEP_VARIABLE: str(STEP_S),
        }
        return parts.running(parts.worker(name), self._own(name), changes, code=code)

    @contextmanager
    def api(self, name: str, *, code: Path) -> Iterator[httpx.Client]:
        """Run a further api, of other code, while the block lasts."""
        port = ports.pick("127.0.0.1")
        with (
            parts.running((*parts.API, str(port)), self._own(name), code=code),
            httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S) as http,
        ):
            assert until(lambda: _is_ready(http))
            yield http

    def submit(self, **changes: Any) -> str:
        answer = self.http.post("/v1/jobs", json={**BODY, **changes})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def begun(self, worker: str) -> str:
        """Return a long job that is being rendered by a certain worker; those that another one takes are canceled."""
        while True:
            job = self.submit(steps=LONG_STEPS)
            assert until(lambda: self.job(job)["progress"]["steps_done"] > 0)  # noqa: B023 - called at once
            if self.job(job)["worker"] == worker:
                return job
            self.http.post(f"/v1/jobs/{job}/cancel")

    def job(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"/v1/jobs/{job}").json()
        return found

    def until(self, job: str, state: str) -> dict[str, Any]:
        assert until(lambda: self.job(job).get("state") == state), self.job(job)
        return self.job(job)

    def ready(self, checkpoint: str, workers: int) -> None:
        def count() -> int:
            listed = self.http.get("/v1/workers").json()["workers"]
            ready = [one for one in listed if one["is_alive"] and not one["draining_at"]]
            return sum(one["checkpoint"] == checkpoint for one in ready)

        assert until(lambda: count() == workers)

    def drain(self, worker: str) -> None:
        """Ask a worker to leave."""
        assert self.http.post(f"/v1/workers/{worker}/drain").is_success

    def place(self, name: str) -> Path:
        """Put the demo checkpoint into the folder under another name."""
        return place(self.checkpoints / f"{name}.safetensors")

    def _own(self, name: str) -> Path:
        own = self.folder / name
        own.mkdir()
        return own


@contextmanager
def opened(settings: Settings, folder: Path, *, courier: Path = parts.ROOT) -> Iterator[Site]:
    """Open a farm on emptied engines, without a worker yet; `courier` is the code that the courier runs."""
    (folder / "checkpoints").mkdir()
    (folder / "courier").mkdir()
    place(folder / "checkpoints" / f"{DEMO}.safetensors")
    database = Database(settings, pool_size=1)
    with database.transaction() as session:
        emptying.empty(session)
    database.close()
    with ExitStack() as open_:
        url = open_.enter_context(serving(settings))
        open_.enter_context(parts.running(parts.COURIER, folder / "courier", code=courier))
        http = open_.enter_context(httpx.Client(base_url=url, timeout=LIMIT_S))
        yield Site(url, http, folder)


def _is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").is_success
    except httpx.TransportError:
        return False


def place(file: Path) -> Path:
    """Copy the demo checkpoint; unlike an SD1.5 of full size it needs its configuration beside it."""
    shutil.copy(studio.DEMO, file)
    shutil.copytree(studio.DEMO.with_suffix(".config"), file.with_suffix(".config"))
    return file
