"""Forecast of a job's start and finish. Pure; `api.farm.queue_stats` reads the numbers from the database.

A steady-state estimate from measured speeds: it takes jobs to cost about the same, and slots to share a worker's speed evenly.

A worker has some of the checkpoints that it can load open: the resident one and those whose jobs it runs. It shares itself evenly
among them, and stays with them. A checkpoint that nobody has open waits until a worker turns to it, and is then served by that
one alone. So what comes for other checkpoints later, and workers that turn away or join in, are left out.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

# For how long a worker stays with its work while others' jobs wait for a checkpoint that it could load: the longer of the two.
STAYS_S = 1.0
STAYS_PRICES = 10.0


class Reason(StrEnum):
    """Why a queued job does not run yet."""

    TURN = "waits_its_turn"
    LOADING = "its_checkpoint_is_being_loaded"
    SWAP = "waits_for_a_worker_to_change_checkpoints"
    NO_WORKER = "no_worker_serves_its_checkpoint"
    DRAINING = "all_its_workers_are_draining"
    RETRY = "waits_to_be_tried_again"
    PAUSED = "its_key_is_paused"
    LIMIT = "its_key_runs_as_many_as_it_may"


@dataclass(frozen=True, slots=True)
class Load:
    """The work of one checkpoint, and the workers that can load it.

    Costs are `GenerationParams.cost`; `speed` is cost per second of all these workers.

    `speed` is None while no live worker has measured any. Workers that are `draining` take no job and count for nothing else.
    `share` is the part of the workers' slots and speed that the checkpoint has; `is_open` says whether any of them renders it,
    and `turn_s` how many seconds it takes until one can, where none does. `second_s` is the price of the checkpoint that a
    second pass has of its own.
    """

    checkpoint: str
    queued: int = 0
    queued_cost: int = 0
    oldest: datetime | None = None
    waited_s: float = 0.0
    running: int = 0
    running_cost: int = 0
    running_cost_left: float = 0.0
    workers: int = 0
    draining: int = 0
    slots: int = 0
    speed: float | None = None
    resident: int = 0
    loading: int = 0
    idle: int = 0
    price_s: float = 0.0
    share: float = 1.0
    is_open: bool = True
    turn_s: float = 0.0
    second_s: float = 0.0

    @property
    def pace(self) -> float | None:
        """The cost a second at which its jobs are done."""
        return self.speed * self.share if self.speed else None

    @property
    def open_slots(self) -> int:
        """How many of its jobs run at the same time; at least one, where there is a worker."""
        return max(1, round(self.slots * self.share)) if self.slots else 0


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


def patience_s(price_s: float) -> float:
    """Return how long a job waits at most, for a checkpoint of that price, before its home turns to it."""
    return max(STAYS_S, STAYS_PRICES * price_s)


def turn_s(price_s: float, *, is_loading: bool, is_idle: bool, waited_s: float) -> float:
    """Return the seconds until a worker has made a checkpoint resident, from when one begins and what it takes.

    One that has work leaves it for a job that has waited for longer than it pays to stay.
    """
    begins_in_s = 0.0 if is_loading or is_idle else max(0.0, patience_s(price_s) - waited_s)
    return begins_in_s + price_s


def forecast_queued(
    load: Load, before: Ahead, cost: int, *, held: Reason | None = None, due_in_s: float = 0.0
) -> Forecast:
    """Forecast a queued job of `cost` behind the jobs `before` it.

    `held` is the reason if its key may run nothing now; `due_in_s` is the wait before its next attempt, in seconds.
    """
    reason = _why(load, held, due_in_s)
    if held or not load.pace or not before.is_all or not load.slots:
        return Forecast(before.jobs, reason, None, None)
    # Jobs leave at pace / mean cost a second; this one starts when enough of those in front have left.
    in_front = before.jobs + load.running
    must_leave = in_front + 1 - load.open_slots
    mean_cost = (before.cost + load.running_cost) / in_front if in_front else 0.0
    start_s = max(due_in_s, load.turn_s + max(0, must_leave) * mean_cost / load.pace)
    companions = min(load.open_slots, in_front + 1)
    return Forecast(before.jobs, reason, start_s, start_s + load.second_s + cost * companions / load.pace)


def _why(load: Load, held: Reason | None, due_in_s: float) -> Reason:
    if not load.workers:
        return Reason.DRAINING if load.draining else Reason.NO_WORKER
    if held or due_in_s:
        return held or Reason.RETRY
    if load.is_open:
        return Reason.TURN
    return Reason.LOADING if load.loading else Reason.SWAP


def forecast_running(load: Load, cost_left: float) -> Forecast:
    """Forecast a running job by the cost that is left."""
    finish_s = load.second_s + cost_left * max(1, load.running) / load.pace if load.pace else None
    return Forecast(None, None, 0.0, finish_s)
