"""How many workers a checkpoint wants, and which worker would be missed least. Pure: numbers in, numbers out.

Work and speeds are counted in `GenerationParams.cost`. An autoscaler follows these; cool-downs and who starts the machines
are its own business. All that is there is sized to be done within the target, so a steady load settles at waits of about it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Goal:
    """What the operator wants of a checkpoint: work done `target_wait_s` after it came, by `minimum` to `maximum` workers."""

    target_wait_s: float
    minimum: int = 0
    maximum: int = 1000


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker that could be stopped, and the GPU seconds of finished steps that would be lost with it."""

    worker_id: str
    lost_gpu_s: float


def backlog_gpu_s(backlog: float, worker_speed: float | None) -> float | None:
    """Return how long one worker would need for a backlog, in seconds; None while no worker has measured its speed."""
    if backlog <= 0:
        return 0.0
    return backlog / worker_speed if worker_speed else None


def desired_workers(backlog: float, worker_speed: float | None, *, workers: int, goal: Goal) -> int:
    """Return how many workers would finish the backlog, running jobs included, within the target.

    While nobody has measured a speed, one worker is wanted for any work at all, and the `workers` that are there stay.
    """
    gpu_s = backlog_gpu_s(backlog, worker_speed)
    # A quotient may be too small for a number, and there is work all the same.
    wanted = max(1, workers) if gpu_s is None else max(math.ceil(gpu_s / goal.target_wait_s), int(gpu_s > 0))
    return min(max(wanted, goal.minimum), goal.maximum)


def scale_in_order(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return workers in the order in which to stop them: least work lost first."""
    return sorted(candidates, key=lambda candidate: (candidate.lost_gpu_s, candidate.worker_id))
