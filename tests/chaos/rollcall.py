"""The roll call after a storm: every slot of every worker must still hear its doorbell.

A farm with deaf slots still ends all its jobs, only ever later, so no rule of the checker would notice.
"""

from collections.abc import Iterator

import urllib3

from tests.chaos.checker import Violation
from tests.chaos.farm import SLOTS, Stage
from tests.support.waiting import until

WAIT_S = 60.0
JOB_S = 2.0


def absent(stage: Stage, workers: int, step_s: float) -> Iterator[Violation]:
    """Give every slot work for as long as is waited, and name the workers that do not run as many jobs as they have slots."""
    job = {
        "prompt": "roll call",
        "width": 64,
        "height": 64,
        "steps": min(150, int(JOB_S / step_s)),
        "sampler": "euler",
    }
    http = urllib3.PoolManager(timeout=10.0, retries=False)
    wanted = {"jobs": [job] * int(workers * SLOTS * WAIT_S / JOB_S)}
    batch = http.request("POST", f"{stage.url}/v1/batches", json=wanted).json()
    most: dict[str, int] = {}

    def all_answer() -> bool:
        for worker, running in stage.recorder.running().items():
            most[worker] = max(running, most.get(worker, 0))
        return sum(running >= SLOTS for running in most.values()) >= workers

    if not until(all_answer, WAIT_S):
        yield Violation("deaf_slots", f"of {SLOTS} slots each, at most so many ran jobs at once: {most}")
    http.request("POST", f"{stage.url}/v1/batches/{batch['id']}/cancel")
