"""`python -m tests.bench.neighbours`: what one client can do to another's submits, lists, pictures and webhooks.

One client uses the farm as usual, alone; then beside another one that misbehaves, in one way after another and in all at once.
Both have keys without limits. All processes are real and share this machine's cores, the misbehaving client at a lower priority.
Prints ratios to the quiet rounds of the same run, which lie between the others; what was refused, or not answered within a
minute, is counted. Writes `.farm/bench/neighbours.json`. Asserts nothing: a timing is no test.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

from api.client import Job
from tests.bench.api import SMALL, Stage, milliseconds, running, since_done
from tests.bench.nuisance import BEHAVIOURS
from tests.support.receiver import Receiver, receiving

OUT = Path(".farm/bench/neighbours.json")
GAVE_UP_S = 60.0
SETTLE_S = 3.0


@dataclass(slots=True)
class Usual:
    """A client that uses the farm as usual, and how long each of its acts took, in seconds."""

    http: httpx.Client
    receiver: Receiver
    took_s: dict[str, list[float]] = field(default_factory=dict)
    refused: int = 0

    def round(self) -> None:
        """Submit a job, hear of its end, list jobs and look at the picture."""
        hook = {"url": f"{self.receiver.url}/done", "events": ["job.succeeded"]}
        sent = self._timed("submit", "POST", "/v1/jobs", json={**SMALL, "webhook": hook})
        if sent is None:
            return
        done = Job.model_validate(json.loads(self.receiver.next().body)["data"])
        self.took_s.setdefault("webhook", []).append(since_done(done))
        self._timed("list", "GET", "/v1/jobs")
        self._timed("picture", "GET", f"/v1/jobs/{done.id}/images/0", params={"inline": True})
        self._timed("thumbnail", "GET", f"/v1/jobs/{done.id}/images/0/thumbnail")

    def _timed(self, act: str, method: str, path: str, **content: Any) -> httpx.Response | None:
        began = time.perf_counter()
        try:
            answer = self.http.request(method, path, **content).raise_for_status()
        except httpx.HTTPError:
            self.refused += 1
            return None
        self.took_s.setdefault(act, []).append(time.perf_counter() - began)
        return answer


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.neighbours", description=__doc__)
    parser.add_argument("--rounds", type=int, default=150, help="of the usual client, beside each behaviour")
    parser.add_argument("--only", choices=[*BEHAVIOURS, "all"], help="one behaviour instead of each")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as stage:
        result = measured(stage, asked.rounds, [asked.only] if asked.only else [*BEHAVIOURS, "all"])
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))  # noqa: T201 - a command line tool


def measured(stage: Stage, rounds: int, behaviours: Sequence[str]) -> dict[str, Any]:
    """Return the usual client's times beside each behaviour, as ratios to those of the quiet rounds."""
    usual_key, bad_key = stage.keys[:2]
    quiet: dict[str, list[float]] = {}
    beside: dict[str, tuple[dict[str, list[float]], int]] = {}
    with receiving() as receiver:
        used(stage.farm_with_keys, usual_key, receiver, 5)  # warm
        for behaviour in behaviours:
            time.sleep(SETTLE_S)  # what went before has left work behind
            for act, took_s in used(stage.farm_with_keys, usual_key, receiver, rounds)[0].items():
                quiet.setdefault(act, []).extend(took_s)
            with misbehaving(stage.farm_with_keys, bad_key, [*BEHAVIOURS] if behaviour == "all" else [behaviour]):
                beside[behaviour] = used(stage.farm_with_keys, usual_key, receiver, rounds)
    alone = {act: milliseconds(took_s) for act, took_s in quiet.items()}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": psutil.cpu_count(),
        "quiet_ms": alone,
        "ratios": {
            behaviour: {"refused": refused, **{act: over(took_s, alone[act]) for act, took_s in acts.items()}}
            for behaviour, (acts, refused) in beside.items()
        },
    }


def used(url: str, key: str, receiver: Receiver, rounds: int) -> tuple[dict[str, list[float]], int]:
    """Use the farm as usual; return the seconds by act, and how many requests were refused."""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=GAVE_UP_S) as http:
        client = Usual(http, receiver)
        for _ in range(rounds):
            client.round()
    return client.took_s, client.refused


def over(took_s: Sequence[float], alone: Mapping[str, float]) -> dict[str, float]:
    """Return the middle and the tail over those of the quiet rounds."""
    now = milliseconds(took_s)
    return {cut: round(now[cut] / alone[cut], 2) for cut in ("p50", "p99")}


@contextmanager
def misbehaving(url: str, key: str, behaviours: Sequence[str]) -> Iterator[None]:
    """Have a client misbehave in these ways while the block lasts."""
    with ExitStack() as stack:
        for behaviour in behaviours:
            argv = (sys.executable, "-m", "tests.bench.nuisance", behaviour, url, key)
            process = stack.enter_context(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            stack.callback(process.communicate)
            assert process.stdout is not None
            process.stdout.readline()
        time.sleep(SETTLE_S)  # until it is well at it
        yield


if __name__ == "__main__":
    main()
