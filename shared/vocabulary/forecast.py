"""Forecast of a job's start and finish. Pure; `api.farm.queue_stats` reads the numbers from the database.

A steady-state estimate from measured speeds: it takes jobs to cost about the same, and slots to share a worker's speed evenly.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Reason(StrEnum):
    """Why a queued job does not run yet."""

    TURN = "waits_its_turn"
    NO_WORKER = "no_worker_serves_its_checkpoint"
    DRAINING = "all_its_workers_are_draining"
    RETRY = "waits_to_be_tried_again"
    PAUSED = "its_key_is_paused"
    LIMIT = "its_key_runs_as_many_as_it_may"


@dataclass(frozen=True, slots=True)
class Load:
    """The work and the workers of one checkpoint. Costs are `GenerationParams.cost`; `speed` is cost per second of all workers.

    `speed` is None while no live worker has measured any. Workers that are `draining` take no job and count for nothing else.
    """

    checkpoint: str
    queued: int = 0
    queued_cost: int = 0
    oldest: datetime | None = None
    running: int = 0
    running_cost: int = 0
    running_cost_left: float = 0.0
    workers: int = 0
    draining: int = 0
    slots: int = 0
    speed: float | None = None


@dataclass(frozen=True, slots=True)
class Ahead:
    """The queued jobs that are claimed before a job; `is_all` is False when there are more than were counted."""

    jobs: int
    cost: int
    is_all: bool = True


@dataclass(frozen=True, slots=True)
class Forecast:
    """When a job will start and finish, in seconds from now; None where nobody can know. `position` 0 is next."""

    position: int | None
    reason: Reason | None
    start_s: float | None
    finish_s: float | None


def forecast_queued(
    load: Load, before: Ahead, cost: int, *, held: Reason | None = None, due_in_s: float = 0.0
) -> Forecast:
    """Forecast a queued job of `cost` behind the jobs `before` it.

    `held` is the reason if its key may run nothing now; `due_in_s` is the wait before its next attempt, in seconds.
    """
    reason = _why(load, held, due_in_s)
    if held or not load.speed or not before.is_all or not load.slots:
        return Forecast(before.jobs, reason, None, None)
    # Jobs leave at speed / mean cost a second; this one starts when enough of those in front have left.
    in_front = before.jobs + load.running
    must_leave = in_front + 1 - load.slots
    mean_cost = (before.cost + load.running_cost) / in_front if in_front else 0.0
    start_s = max(due_in_s, max(0, must_leave) * mean_cost / load.speed)
    companions = min(load.slots, in_front + 1)
    return Forecast(before.jobs, reason, start_s, start_s + cost * companions / load.speed)


def _why(load: Load, held: Reason | None, due_in_s: float) -> Reason:
    if not load.workers:
        return Reason.DRAINING if load.draining else Reason.NO_WORKER
    return held or (Reason.RETRY if due_in_s else Reason.TURN)


def forecast_running(load: Load, cost_left: float) -> Forecast:
    """Forecast a running job by the cost that is left."""
    finish_s = cost_left * max(1, load.running) / load.speed if load.speed else None
    return Forecast(None, None, 0.0, finish_s)
