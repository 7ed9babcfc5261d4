"""Autoscaling target: how many workers a checkpoint needs. Pure.

Work is in units of `GenerationParams.cost`, speed in units per second. An autoscaler follows these numbers; cool-downs and
starting machines are left to it. The whole backlog is to be done within the target, so a steady load waits for about as long.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Goal:
    """Operator's target for a checkpoint: work is done within `target_wait_s`, by `minimum` to `maximum` workers."""

    target_wait_s: float
    minimum: int = 0
    maximum: int = 1000


def backlog_gpu_s(backlog: float, worker_speed: float | None) -> float | None:
    """Return the seconds that one worker needs for a backlog; None while no worker has measured its speed."""
    if backlog <= 0:
        return 0.0
    return backlog / worker_speed if worker_speed else None


def desired_workers(backlog: float, worker_speed: float | None, *, workers: int, goal: Goal) -> int:
    """Return how many workers finish the backlog, running jobs included, within the target.

    While no speed is measured, any work wants one worker, and the current `workers` are kept.
    """
    gpu_s = backlog_gpu_s(backlog, worker_speed)
    # A quotient may be too small for a number, and there is work all the same.
    workers_needed = max(1, workers) if gpu_s is None else max(math.ceil(gpu_s / goal.target_wait_s), int(gpu_s > 0))
    return min(max(workers_needed, goal.minimum), goal.maximum)
