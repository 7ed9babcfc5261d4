"""Queue statistics: work and workers per checkpoint, and the jobs ahead of one. Reads only."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Float, case, cast, func, select, tuple_
from sqlalchemy.orm import Session

from shared.infra.tables import JobRow, WorkerRow
from shared.vocabulary.forecast import Ahead, Load
from shared.vocabulary.states import JobState

# How far a queued job's place is counted; beyond it the place is "at least so many", and counting costs no more.
FARTHEST_COUNTED = 10_000

_Sums = dict[str, dict[str, Any]]


def loads(session: Session, *, silent_after_s: float) -> Sequence[Load]:
    """Return the load of every checkpoint that has jobs or live workers, sorted by name."""
    work = _work(session, JobState.QUEUED, JobState.RUNNING)
    workers = _workers(session, silent_after_s)
    return [_load(name, work, workers) for name in sorted(work.keys() | workers.keys())]


def load(session: Session, checkpoint: str, *, silent_after_s: float) -> Load:
    """Return the running jobs and the workers of one checkpoint. Queued jobs are left out: there may be a million."""
    work = _work(session, JobState.RUNNING, checkpoint=checkpoint)
    return _load(checkpoint, work, _workers(session, silent_after_s, checkpoint=checkpoint))


def ahead(session: Session, row: JobRow) -> Ahead:
    """Count the queued jobs that are claimed before this one."""
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


def due_in_s(session: Session, row: JobRow) -> float:
    """Return the seconds until a queued job may be claimed; 0 unless it waits for a retry."""
    if row.not_before is None:
        return 0.0
    left = session.execute(select(func.extract("epoch", row.not_before - func.now()))).scalar_one()
    return max(0.0, float(left))


def cost_left(row: JobRow) -> float:
    """Return the cost of a running job's remaining steps."""
    return row.cost * (1 - row.steps_done / row.steps_total) if row.steps_total else 0.0


def _load(name: str, work: _Sums, workers: _Sums) -> Load:
    return Load(checkpoint=name, **{**work.get(name, {}), **workers.get(name, {})})


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


def _workers(session: Session, silent_after_s: float, *, checkpoint: str | None = None) -> _Sums:
    takes_jobs = WorkerRow.draining_at.is_(None)
    workers = func.count().filter(takes_jobs)
    # A worker that has not worked yet counts as fast as the mean of those that have.
    measured = func.count(case((WorkerRow.speed > 0, 1))).filter(takes_jobs)
    speed = func.sum(WorkerRow.speed).filter(takes_jobs) * workers / func.nullif(measured, 0)
    slots = func.coalesce(func.sum(WorkerRow.slots).filter(takes_jobs), 0)
    query = (
        select(WorkerRow.checkpoint, workers, func.count().filter(~takes_jobs), slots, speed)
        .where(WorkerRow.seen_at > func.now() - timedelta(seconds=silent_after_s), WorkerRow.unfit.is_(None))
        .group_by(WorkerRow.checkpoint)
    )
    if checkpoint is not None:
        query = query.where(WorkerRow.checkpoint == checkpoint)
    return {
        name: {"workers": workers, "draining": draining, "slots": int(slots), "speed": speed}
        for name, workers, draining, slots, speed in session.execute(query)
    }
