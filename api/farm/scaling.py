"""Autoscaling target: how many workers the fleet needs, or a checkpoint that has workers of its own. Pure.

Work is in units of `GenerationParams.cost`, speed in units per second. An autoscaler follows these numbers; cool-downs and
starting machines are left to it. The whole backlog is to be done within the target, so a steady load waits for about as long.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from shared.vocabulary.forecast import Load


@dataclass(frozen=True, slots=True)
class Goal:
    """Operator's target: work is done within `target_wait_s`, by `minimum` to `maximum` workers."""

    target_wait_s: float
    minimum: int = 0
    maximum: int = 1000


class _Worker(Protocol):
    """What is known of a live worker."""

    @property
    def speed(self) -> float | None: ...
    @property
    def unfit(self) -> str | None: ...
    @property
    def draining_at(self) -> object: ...


@dataclass(frozen=True, slots=True)
class Fleet:
    """The workers that take jobs, and the speed of one: the mean of those that have measured theirs, None without any."""

    workers: int
    worker_speed: float | None


def fleet(workers: Iterable[_Worker]) -> Fleet:
    """Sum up live workers; those that are unfit or draining count for nothing."""
    taking = [one for one in workers if one.unfit is None and one.draining_at is None]
    speeds = [one.speed for one in taking if one.speed]
    return Fleet(len(taking), sum(speeds) / len(speeds) if speeds else None)


def fleet_backlog(loads: Iterable[Load]) -> float:
    """Return the work over all checkpoints, for `desired_workers`.

    That of checkpoints which no live worker can load wants a worker, since a new one may; a second one would not help it.
    """
    servable, stranded = 0.0, 0.0
    for load in loads:
        work = load.queued_cost + load.running_cost_left
        if load.workers:
            servable += work
        else:
            stranded += work
    return max(servable, min(stranded, 1.0))


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
