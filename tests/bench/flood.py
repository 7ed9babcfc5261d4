"""`python -m tests.bench.flood`: effect of 50,000 concurrent submits on the api's memory and on running renders.

A farm of real processes with a simulated device: a step lasts as long as on a GPU and takes no core, so the figures show the
flood's effect on the farm's own part of a render. Renders follow one another, first alone, then during the flood, which is for a
checkpoint that no worker serves and therefore only waits. Client, api, worker and engines share this machine's cores. Asserts
nothing: a timing is no test.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from deploy.standalone import ports
from deploy.standalone.farm import engines_only
from shared import migrations
from shared.infra.db import Database
from shared.infra.tables import CheckpointRow
from shared.settings import Settings
from tests.bench.memory import Memory
from tests.bench.pour import Poured, pour
from tests.chaos import sketch
from tests.support import parts
from tests.support.factories import DEMO

HOST = "127.0.0.1"
ELSEWHERE = "elsewhere"
STEP_S = 0.05  # of four images at 512 px on a fast GPU
PROMPT = {"prompt": "a red circle on a blue background"}
RENDER = {**PROMPT, "checkpoint": DEMO, "width": 256, "height": 256, "steps": 60, "num_images": 4}
ALONE = 8


@dataclass(frozen=True, slots=True)
class Stage:
    """A farm that runs."""

    url: str
    api_pid: int
    http: httpx.Client


class Renders:
    """Has one picture after the other rendered while the block lasts."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._go_on)
        self.took_s: list[float] = []

    def __enter__(self) -> "Renders":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _go_on(self) -> None:
        while not self._done.is_set():
            self.took_s.append(_rendered(self._http))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.flood", description=__doc__)
    parser.add_argument("--submits", type=int, default=50_000)
    parser.add_argument("--clients", type=int, default=64)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, _farm(Path(folder)) as stage:
        print(json.dumps(_measured(stage, asked.submits, asked.clients), indent=1))  # noqa: T201 - a command line tool


@contextmanager
def _farm(folder: Path) -> Iterator[Stage]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
    port = ports.pick(HOST)
    with ExitStack() as stack:
        env = stack.enter_context(engines_only(folder / "engines", environ))
        migrations.upgrade(env["FARM_DATABASE_URL"])
        _announce(env["FARM_DATABASE_URL"])
        started = {}
        for name, argv in {"api": (*parts.API, str(port)), "courier": parts.COURIER, "gpu": parts.worker()}.items():
            (folder / name).mkdir()
            settings = {**env, "FARM_AUTH": "none", sketch.STEP_VARIABLE: str(STEP_S)}
            started[name] = stack.enter_context(parts.running(argv, folder / name, settings))
        url = f"http://{HOST}:{port}"
        http = stack.enter_context(httpx.Client(base_url=url, timeout=60))
        while not _serves(http):
            time.sleep(0.1)
        yield Stage(url, started["api"].pid, http)


def _announce(database_url: str) -> None:
    db = Database(Settings.model_validate({"database_url": database_url}))
    with db.transaction() as session:
        session.add(CheckpointRow(name=ELSEWHERE, size_bytes=1))
    db.close()


def _serves(http: httpx.Client) -> bool:
    try:
        served = http.get("/v1/checkpoints").json()["checkpoints"]
    except httpx.TransportError:
        return False
    return any(one["name"] == DEMO and one["ready_workers"] for one in served)


def _measured(stage: Stage, submits: int, clients: int) -> dict[str, Any]:
    _rendered(stage.http)  # warm
    alone_s = [_rendered(stage.http) for _ in range(ALONE)]
    with Memory(stage.api_pid) as memory:
        before_mib = memory.now_mib()
        with Renders(stage.http) as renders:
            flood: Poured = asyncio.run(
                pour(stage.url, {**PROMPT, "checkpoint": ELSEWHERE}, submits=submits, clients=clients)
            )
        after_mib = memory.now_mib()
    alone, flooded = statistics.median(alone_s), statistics.median(renders.took_s)
    return {
        "submits": dict(flood.statuses),
        "submits_per_s": round(flood.per_s, 1),
        "api_mib": {"before": round(before_mib), "peak": round(memory.peak_mib), "after": round(after_mib)},
        "renders": len(renders.took_s),
        "render_s": {"alone": round(alone, 3), "in the flood": round(flooded, 3), "ratio": round(flooded / alone, 3)},
    }


def _rendered(http: httpx.Client) -> float:
    """Have a picture rendered; returns how long it took from the first step to the last upload, in seconds."""
    answer = http.post("/v1/jobs", json=RENDER, params={"wait": 60}).raise_for_status()
    job = answer.json()
    assert job["state"] == "succeeded", job
    return float(job["timings"]["render_s"])


if __name__ == "__main__":
    main()
