"""Steady work for every slot of a farm, and how soon its throughput is back after the loss of a worker with all slots busy."""

import random
import signal
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise

import urllib3

from tests.chaos import marked
from tests.chaos.farm import Shape, Stage
from tests.chaos.history import Version
from tests.support.waiting import until

STEPS, IMAGES = (
    150,
    8,
)  # some ten seconds, in a full worker; what is rendered in a moment is soon rendered one by one, too
BATCH = 1000  # jobs that the api takes at once
FILLED_S = 30.0
BEFORE_S, WINDOW_S, AFTER_S = 20.0, 5.0, 20.0
SHARE = 0.9
GRACE_S = 10.0  # beyond the lease


@dataclass(frozen=True, slots=True)
class Loss:
    """What a loss did to the steps a second, before it and after `limit_s`. `back_s`: when they first were back, or None."""

    before: float
    after: float
    back_s: float | None
    limit_s: float

    @property
    def is_over(self) -> bool:
        """Whether the throughput came back in time and stayed."""
        return self.back_s is not None and self.back_s <= self.limit_s and self.after >= SHARE * self.before


@contextmanager
def steady(stage: Stage, shape: Shape, seconds: float) -> Iterator[None]:
    """Keep all slots busy for so long, or until the block ends."""
    rng = random.Random(1)
    http = urllib3.PoolManager(timeout=30.0, retries=False)
    rest, made = int(shape.workers * shape.slots * seconds / (STEPS * shape.step_s)), []
    try:
        while rest > 0:
            jobs = [_job(rng) for _ in range(min(rest, BATCH))]
            made.append(http.request("POST", f"{stage.url}/v1/batches", json={"jobs": jobs}).json()["id"])
            rest -= len(jobs)
        yield
    finally:
        for batch in made:
            http.request("POST", f"{stage.url}/v1/batches/{batch}/cancel")


def loss(stage: Stage, shape: Shape, *, lease_s: float) -> Loss:
    """Kill -9 a worker with all slots busy, and watch the farm's throughput come back."""
    limit_s = lease_s + GRACE_S
    with steady(stage, shape, FILLED_S + BEFORE_S + limit_s + AFTER_S):
        until(lambda: _is_full(stage, shape), FILLED_S)
        time.sleep(BEFORE_S)
        until(lambda: _is_full(stage, shape), FILLED_S)
        killed = time.time()
        stage.send(stage.names("gpu")[0], signal.SIGKILL)
        time.sleep(limit_s + AFTER_S)
        versions = stage.recorder.versions()
    return judged(versions, killed=killed, limit_s=limit_s)


def judged(versions: Iterable[Version], *, killed: float, limit_s: float) -> Loss:
    """Return what became of the throughput, seen through a moving window. Times are in seconds."""
    done = sorted(_done(versions))
    times = [at for at, _ in done]
    sums = list(accumulate((steps for _, steps in done), initial=0))

    def rate(begin: float, end: float) -> float:
        return (sums[bisect_left(times, end)] - sums[bisect_left(times, begin)]) / (end - begin)

    before = rate(killed - BEFORE_S, killed)
    looks = (tenth / 10 for tenth in range(int((limit_s + AFTER_S - WINDOW_S) * 10) + 1))
    back_s = next((at for at in looks if rate(killed + at, killed + at + WINDOW_S) >= SHARE * before), None)
    after = rate(killed + limit_s, killed + limit_s + AFTER_S)
    return Loss(round(before, 2), round(after, 2), back_s, limit_s)


def _done(versions: Iterable[Version]) -> Iterator[tuple[float, int]]:
    """Yield when how many steps were done, whatever became of them."""
    ordered = sorted(versions, key=lambda one: (one.job, one.seq))
    for before, one in pairwise(ordered):
        if (before.job, before.attempt) == (one.job, one.attempt) and one.steps > before.steps:
            yield one.at, one.steps - before.steps


def _is_full(stage: Stage, shape: Shape) -> bool:
    running = stage.recorder.running()
    return len(running) == shape.workers and all(count == shape.slots for count in running.values())


def _job(rng: random.Random) -> dict[str, object]:
    # Of different lengths, so that slots do not end in one beat.
    steps = rng.randint(STEPS // 2, STEPS)
    size = {"width": 64, "height": 64, "num_images": IMAGES, "checkpoint": rng.choice(marked.NAMES)}
    return {"prompt": "steady", "steps": steps, "sampler": "euler", **size}
