"""`python -m tests.bench.api`: throughput and latency of the api, with a gpu worker whose model does nothing.

Measures submits of 8 and of 64 clients, of one owner and of many, with keys and without, by turns with a minimal endpoint that
validates, inserts one row and rings, in short slices, so that a busy machine slows both alike; submits beside waiting clients;
the time from submit to first step on an idle farm; from success to the client's notice, by poll, long poll, events and
webhook. All processes are real and share this machine's cores, the clients too. Writes `.farm/bench/api.json`. Asserts nothing: a
timing is no test.
"""

import argparse
import asyncio
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

from api.auth import keys
from api.auth.keys import NewKey
from api.client import Farm, Job
from api.limits.streams import MAX_STREAMS
from deploy.standalone import ports, processes, serving
from deploy.standalone.farm import engines_only
from deploy.standalone.program import Program, python_module
from deploy.standalone.serving import PlannedWorker
from deploy.standalone.supervisor import Supervisor
from shared.infra.db import Database
from shared.infra.tables import CheckpointRow
from shared.settings import Settings
from tests.bench.noop import STEPS_VARIABLE
from tests.bench.pour import Poured, pour
from tests.support.factories import DEMO
from tests.support.receiver import receiving

OUT = Path(".farm/bench/api.json")
HOST = "127.0.0.1"
# No worker serves it: jobs of it only wait.
ELSEWHERE = "elsewhere"
SMALL: dict[str, Any] = {
    "prompt": "a red circle on a blue background",
    "checkpoint": DEMO,
    "width": 64,
    "height": 64,
    "steps": 1,
}
QUEUED = {**SMALL, "checkpoint": ELSEWHERE}
POLL_S = 0.1
SETTLED_S = 0.05
CLIENTS = (8, 64)
OWNERS = 16


@dataclass(frozen=True, slots=True)
class Stage:
    """Where the farm answers, without keys and with, and the minimal endpoint; keys; the file where first steps are noted."""

    farm: str
    farm_with_keys: str
    minimal: str
    keys: Sequence[str]
    steps: Path

    def crowds(self) -> Mapping[str, tuple[str, Sequence[str]]]:
        """Return who submits: to which api, with which keys."""
        return {
            "no keys": (self.farm, ()),
            "one owner": (self.farm_with_keys, self.keys[:1]),
            f"{len(self.keys)} owners": (self.farm_with_keys, self.keys),
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.api", description=__doc__)
    parser.add_argument("--submits", type=int, default=400, help="in each slice")
    parser.add_argument("--rounds", type=int, default=6, help="slices of each kind")
    parser.add_argument("--waiters", type=int, default=2_000)
    parser.add_argument("--jobs", type=int, default=200, help="of those whose first step and end are timed")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as stage:
        result = measured(stage, asked)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))  # noqa: T201 - a command line tool


def measured(stage: Stage, asked: argparse.Namespace) -> dict[str, Any]:
    """Return all figures; times in milliseconds."""
    first_step = first_steps(stage, asked.jobs)
    notified = {
        "poll every 100 ms": milliseconds(polled(stage, asked.jobs)),
        "held request": milliseconds(held(stage, asked.jobs)),
        "events": milliseconds(streamed(stage, asked.jobs)),
        "webhook": milliseconds(called(stage, asked.jobs)),
    }
    submits = {
        f"{clients} clients, {crowd}": compared(stage.minimal, url, keys, asked, clients=clients)
        for clients in CLIENTS
        for crowd, (url, keys) in stage.crowds().items()
    }
    waited = rates([asyncio.run(under_waiters(stage.farm, asked.waiters, asked.submits * 4))])
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": psutil.cpu_count(),
        "farm_over_minimal": {name: ratios(found["farm"], found["minimal"]) for name, found in submits.items()},
        f"under_{asked.waiters}_waiters_over_none": ratios(waited, submits["8 clients, no keys"]["farm"]),
        "submits": {**submits, f"8 clients beside {asked.waiters} who wait": waited},
        "submit_to_first_step": milliseconds(first_step),
        "done_to_notified": notified,
    }


def compared(
    minimal: str, farm: str, keys: Sequence[str], asked: argparse.Namespace, *, clients: int
) -> dict[str, Any]:
    """Pour into the minimal endpoint and the farm by turns; the first slices warm both up and do not count."""
    slices: dict[str, list[Poured]] = {"minimal": [], "farm": []}
    for _ in range(1 + asked.rounds):
        for name, url in (("minimal", minimal), ("farm", farm)):
            pouring = pour(url, QUEUED, submits=asked.submits, clients=clients, keys=keys)
            slices[name].append(asyncio.run(pouring))
    return {name: rates(poured[1:]) for name, poured in slices.items()}


def rates(rounds: Sequence[Poured]) -> dict[str, Any]:
    """Return the rate and the latencies of all rounds together."""
    latencies = [latency for poured in rounds for latency in poured.latencies_s]
    statuses = {status for poured in rounds for status in poured.statuses}
    return {
        "per_s": round(len(latencies) / sum(poured.took_s for poured in rounds), 1),
        "statuses": {status: sum(poured.statuses[status] for poured in rounds) for status in sorted(statuses)},
        **milliseconds(latencies),
    }


def ratios(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Return ours over theirs."""
    return {name: round(ours[name] / theirs[name], 2) for name in ("per_s", "p50", "p99")}


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Return the middle and the tail."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {f"p{cut}": round(1e3 * cuts[cut - 1], 1) for cut in (50, 95, 99)}


def first_steps(stage: Stage, jobs: int) -> list[float]:
    """Submit one job after another to an idle farm; the seconds from sending each to its first step."""
    sent: dict[int, float] = {}
    with Farm(stage.farm) as farm:
        for seed in range(jobs):
            sent[seed] = time.time()
            farm.submit(**SMALL, seed=seed, wait_s=30)
    begun = {int(seed): float(at) for seed, at in map(str.split, stage.steps.read_text().splitlines())}
    return [begun[seed] - at for seed, at in sent.items()]


def polled(stage: Stage, jobs: int) -> list[float]:
    """Ask for each job every so often."""
    late = []
    with Farm(stage.farm) as farm:
        for _ in range(jobs):
            job = farm.submit(**SMALL)
            while not job.state.is_final:
                time.sleep(POLL_S)
                job = farm.job(job.id)
            late.append(since_done(job))
    return late


def held(stage: Stage, jobs: int) -> list[float]:
    """Hold each submit until its job is done."""
    with Farm(stage.farm) as farm:
        return [since_done(farm.submit(**SMALL, wait_s=30)) for _ in range(jobs)]


def streamed(stage: Stage, jobs: int) -> list[float]:
    """Follow each job's events."""
    late = []
    with Farm(stage.farm) as farm:
        for _ in range(jobs):
            late += [
                since_done(news)
                for news in farm.stream(farm.submit(**SMALL).id)
                if isinstance(news, Job) and news.state.is_final
            ]
    return late


def called(stage: Stage, jobs: int) -> list[float]:
    """Be called when each job is done."""
    late = []
    with Farm(stage.farm) as farm, receiving() as receiver:
        for _ in range(jobs):
            farm.submit(**SMALL, webhook={"url": f"{receiver.url}/done", "events": ["job.succeeded"]})
            body = receiver.next().body
            late.append(since_done(Job.model_validate(json.loads(body)["data"])))
    return late


def since_done(job: Job) -> float:
    """Return the seconds since a job's end, by this machine's clock, which is the database's too."""
    assert job.timings.finished_at is not None
    return time.time() - job.timings.finished_at.timestamp()


async def under_waiters(url: str, waiters: int, submits: int) -> Poured:
    """Submit while so many clients wait, as many as one owner may on events and the others on held requests."""
    async with waiting(url, waiters):
        return await pour(url, QUEUED, submits=submits, clients=8)


@asynccontextmanager
async def waiting(url: str, waiters: int) -> AsyncIterator[None]:
    """Have clients wait for a job that does not end."""
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        job_id = (await http.post("/v1/jobs", json=QUEUED)).raise_for_status().json()["id"]
    host, _, port = url.removeprefix("http://").partition(":")
    streams = []
    for number in range(waiters):
        reader, writer = await asyncio.open_connection(host, int(port))
        path = f"/v1/jobs/{job_id}/events" if number < MAX_STREAMS else f"/v1/jobs/{job_id}?wait=60"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        if number < MAX_STREAMS:
            await reader.readuntil(b"event: state")
        streams.append(writer)
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        began = -math.inf
        while time.perf_counter() - began > SETTLED_S:  # all of them wait once the api has nothing else to do
            began = time.perf_counter()
            await http.get("/healthz")
    yield
    for writer in streams:
        writer.close()


@contextmanager
def running(folder: Path) -> Iterator[Stage]:
    """Run the engines, two apis, a courier, a gpu worker that does nothing, and the minimal endpoint."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
    steps, (port, keyed, other) = folder / "steps", (ports.pick(HOST) for _ in range(3))
    url, keyed_url, minimal = (f"http://{HOST}:{one}" for one in (port, keyed, other))
    with ExitStack() as stack:
        reached = stack.enter_context(engines_only(folder / "engines", environ))
        more = {"FARM_ALLOW_PRIVATE_URLS": "true", "FARM_CHECKPOINT": str(serving.DEMO.resolve())}
        env = {**environ, **reached, **more, STEPS_VARIABLE: str(steps)}
        (folder / "logs").mkdir()
        supervisor = stack.enter_context(Supervisor(folder / "logs", folder / "run.json", lambda _event: None))
        supervisor.start(processes.migration(env))
        tokens = _prepared(reached["FARM_DATABASE_URL"])
        supervisor.start(
            processes.api(env, HOST, port, url),
            replace(processes.api({**env, "FARM_AUTH": "keys"}, HOST, keyed, keyed_url), name="api-keys"),
            processes.courier(env),
            _doing_nothing(processes.gpu_worker(env, PlannedWorker("gpu0", 4, {}), url)),
            Program("minimal", python_module("tests.bench.minimal", str(other)), env, lambda: _answers(minimal)),
        )
        yield Stage(url, keyed_url, minimal, tokens, steps)


def _prepared(database_url: str) -> list[str]:
    """Announce a checkpoint that no worker serves and make keys; return those."""
    db = Database(Settings.model_validate({"database_url": database_url}))
    with db.transaction() as session:
        session.add(CheckpointRow(name=ELSEWHERE, size_bytes=1))
        made = [keys.create(session, NewKey(name=f"owner {number}")) for number in range(OWNERS)]
    db.close()
    return [token.text for _, token in made]


def _doing_nothing(program: Program) -> Program:
    return replace(program, argv=tuple("tests.bench.noop" if part == "worker.gpu" else part for part in program.argv))


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").is_success
    except httpx.TransportError:
        return False


if __name__ == "__main__":
    main()
