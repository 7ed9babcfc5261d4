"""`python -m tests.bench.flood`: what 50,000 submits at once do to the api's memory and to a render under way.

Starts the embedded farm with one worker, times a render alone, then the same render while the flood comes, and prints both with
the api's memory before, at the peak and after. The flood is for a checkpoint that no worker serves, so that it only waits.
Client, api, database and worker share this machine's cores; on a GPU machine the render has its own. Asserts nothing: a timing
is no test.
"""

import argparse
import asyncio
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from deploy.standalone.farm import Farm, UpOptions
from deploy.standalone.postgres import known_url
from shared.db import CheckpointRow, Database
from shared.settings import Settings
from tests.bench.pour import pour
from tests.factories import DEMO

ELSEWHERE = "elsewhere"
PROMPT = {"prompt": "a red circle on a blue background"}
RENDER = {**PROMPT, "checkpoint": DEMO, "width": 256, "height": 256, "steps": 150, "num_images": 4}
MIB = 2**20


class Memory:
    """Watches how much memory a process holds."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.peak_mib = 0.0

    def now_mib(self) -> float:
        return float(self._process.memory_info().rss / MIB)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            self.peak_mib = max(self.peak_mib, self.now_mib())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.flood", description=__doc__)
    parser.add_argument("--submits", type=int, default=50_000)
    parser.add_argument("--clients", type=int, default=64)
    asked = parser.parse_args()
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
    with tempfile.TemporaryDirectory() as folder:
        options = UpOptions(port=0, data_dir=Path(folder), environ={**environ, "FARM_PREVIEW_SECONDS": "0"})
        with Farm(options) as farm, httpx.Client(base_url=farm.url, timeout=60) as http:
            _announce(Path(folder))
            print(json.dumps(_measured(farm, http, asked.submits, asked.clients), indent=1))  # noqa: T201 - a command line tool


def _announce(folder: Path) -> None:
    url = known_url(folder)
    assert url is not None
    db = Database(Settings.model_validate({"database_url": url}))
    with db.transaction() as session:
        session.add(CheckpointRow(name=ELSEWHERE, size_bytes=1))
    db.close()


def _measured(farm: Farm, http: httpx.Client, submits: int, clients: int) -> dict[str, Any]:
    _rendered(http)  # warm
    alone_s = _rendered(http)
    with Memory(farm.pids()["api"]) as memory:
        before_mib = memory.now_mib()
        job_id = _begun(http)
        flood = asyncio.run(pour(farm.url, {**PROMPT, "checkpoint": ELSEWHERE}, submits=submits, clients=clients))
        after_mib = memory.now_mib()
        flooded_s = _finished(http, job_id)
    return {
        "submits": dict(flood.statuses),
        "submits_per_s": round(flood.per_s, 1),
        "api_mib": {"before": round(before_mib), "peak": round(memory.peak_mib), "after": round(after_mib)},
        "render_s": {"alone": alone_s, "in the flood": flooded_s, "ratio": round(flooded_s / alone_s, 2)},
    }


def _rendered(http: httpx.Client) -> float:
    return _finished(http, _begun(http))


def _begun(http: httpx.Client) -> str:
    job_id: str = http.post("/v1/jobs", json=RENDER).raise_for_status().json()["id"]
    while http.get(f"/v1/jobs/{job_id}").json()["progress"]["steps_done"] == 0:
        time.sleep(0.02)
    return job_id


def _finished(http: httpx.Client, job_id: str) -> float:
    while (job := http.get(f"/v1/jobs/{job_id}").json())["state"] in {"queued", "running"}:
        time.sleep(0.1)
    assert job["state"] == "succeeded", job
    return float(job["timings"]["render_s"])


if __name__ == "__main__":
    main()
