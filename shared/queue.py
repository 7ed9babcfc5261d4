"""What waits, who works, and when a job will be done. Reads only; `shared.jobs` changes jobs, `shared.fleet` workers.

Predictions are steady-state estimates from measured speeds: jobs of like cost, slots that share their workers' speed evenly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import Float, case, cast, func, select, tuple_
from sqlalchemy.orm import Session

from shared.db import JobRow, WorkerRow
from shared.states import JobState

# How far a queued job's place is counted; beyond it the place is "at least so many", and counting costs no more.
FARTHEST_COUNTED = 10_000

_Sums = dict[str, dict[str, Any]]


class Reason(StrEnum):
    """Why a queued job does not run yet."""

    TURN = "waits_its_turn"
    NO_WORKER = "no_worker_serves_its_checkpoint"


@dataclass(frozen=True, slots=True)
class Load:
    """What one checkpoint has to do and who does it. Costs are `GenerationParams.cost`; `speed` is cost a second of all workers.

    `speed` is None while no live worker has measured any.
    """

    checkpoint: str
    queued: int = 0
    queued_cost: int = 0
    oldest: datetime | None = None
    running: int = 0
    running_cost: int = 0
    running_cost_left: float = 0.0
    workers: int = 0
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


def loads(session: Session, *, silent_after_s: float) -> Sequence[Load]:
    """Sum up every checkpoint that has jobs or live workers, by name."""
    work = _work(session, JobState.QUEUED, JobState.RUNNING)
    hands = _hands(session, silent_after_s)
    return [_load(name, work, hands) for name in sorted(work.keys() | hands.keys())]


def load(session: Session, checkpoint: str, *, silent_after_s: float) -> Load:
    """Sum up who works for one checkpoint and on what. What waits is left out: there may be a million of it."""
    work = _work(session, JobState.RUNNING, checkpoint=checkpoint)
    return _load(checkpoint, work, _hands(session, silent_after_s, checkpoint=checkpoint))


def ahead(session: Session, row: JobRow) -> Ahead:
    """Count what is claimed before a queued job."""
    before = (
        select(JobRow.cost)
        .where(
            JobRow.state == JobState.QUEUED,
            JobRow.checkpoint == row.checkpoint,
            tuple_(-JobRow.priority, JobRow.virtual_start, JobRow.id) < (-row.priority, row.virtual_start, row.id),
        )
        .limit(FARTHEST_COUNTED + 1)
        .subquery()
    )
    count, cost = session.execute(select(func.count(), func.coalesce(func.sum(before.c.cost), 0))).one()
    return Ahead(min(count, FARTHEST_COUNTED), int(cost), is_all=count <= FARTHEST_COUNTED)


def forecast_queued(load: Load, before: Ahead, cost: int) -> Forecast:
    """Predict a queued job of `cost` that has the jobs `before` it."""
    reason = Reason.TURN if load.workers else Reason.NO_WORKER
    if not load.speed or not before.is_all or not load.slots:
        return Forecast(before.jobs, reason, None, None)
    # Jobs leave at speed / mean cost a second; this one starts when enough of those in front have left.
    in_front = before.jobs + load.running
    must_leave = in_front + 1 - load.slots
    mean_cost = (before.cost + load.running_cost) / in_front if in_front else 0.0
    start_s = max(0, must_leave) * mean_cost / load.speed
    companions = min(load.slots, in_front + 1)
    return Forecast(before.jobs, reason, start_s, start_s + cost * companions / load.speed)


def forecast_running(load: Load, cost_left: float) -> Forecast:
    """Predict a running job that has `cost_left` to go."""
    finish_s = cost_left * max(1, load.running) / load.speed if load.speed else None
    return Forecast(None, None, 0.0, finish_s)


def cost_left(row: JobRow) -> float:
    """Return what a running job still costs."""
    return row.cost * (1 - row.steps_done / row.steps_total) if row.steps_total else 0.0


def _load(name: str, work: _Sums, hands: _Sums) -> Load:
    return Load(checkpoint=name, **{**work.get(name, {}), **hands.get(name, {})})


def _work(session: Session, *states: JobState, checkpoint: str | None = None) -> _Sums:
    is_queued, is_running = JobRow.state == JobState.QUEUED, JobRow.state == JobState.RUNNING
    share_left = 1 - cast(JobRow.steps_done, Float) / func.nullif(JobRow.steps_total, 0)
    query = (
        select(
            JobRow.checkpoint,
            func.count().filter(is_queued),
            func.coalesce(func.sum(JobRow.cost).filter(is_queued), 0),
            func.min(JobRow.created_at).filter(is_queued),
            func.count().filter(is_running),
            func.coalesce(func.sum(JobRow.cost).filter(is_running), 0),
            func.coalesce(func.sum(JobRow.cost * share_left).filter(is_running), 0),
        )
        .where(JobRow.state.in_(states))
        .group_by(JobRow.checkpoint)
    )
    if checkpoint is not None:
        query = query.where(JobRow.checkpoint == checkpoint)
    return {
        name: {
            "queued": queued,
            "queued_cost": int(queued_cost),
            "oldest": oldest,
            "running": running,
            "running_cost": int(running_cost),
            "running_cost_left": float(left),
        }
        for name, queued, queued_cost, oldest, running, running_cost, left in session.execute(query)
    }


def _hands(session: Session, silent_after_s: float, *, checkpoint: str | None = None) -> _Sums:
    # A worker that has not worked yet counts as fast as the mean of those that have.
    measured = func.count(case((WorkerRow.speed > 0, 1)))
    speed = func.sum(WorkerRow.speed) * func.count() / func.nullif(measured, 0)
    query = (
        select(WorkerRow.checkpoint, func.count(), func.sum(WorkerRow.slots), speed)
        .where(WorkerRow.seen_at > func.now() - timedelta(seconds=silent_after_s))
        .group_by(WorkerRow.checkpoint)
    )
    if checkpoint is not None:
        query = query.where(WorkerRow.checkpoint == checkpoint)
    return {
        name: {"workers": workers, "slots": int(slots), "speed": speed}
        for name, workers, slots, speed in session.execute(query)
    }
