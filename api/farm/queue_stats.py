"""Queue statistics: work and workers per checkpoint, and the jobs ahead of one. Reads only."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Float, cast, func, select, tuple_
from sqlalchemy.orm import Session

from api.farm import libraries
from api.farm.libraries import held
from shared.fleet.holdings import Tier
from shared.infra.tables import JobRow, WorkerRow
from shared.vocabulary import forecast
from shared.vocabulary.forecast import Ahead, Load
from shared.vocabulary.states import JobState

# How far a queued job's place is counted; beyond it the place is "at least so many", and counting costs no more.
FARTHEST_COUNTED = 10_000

_Sums = dict[str, dict[str, Any]]


def loads(session: Session, *, silent_after_s: float) -> Sequence[Load]:
    """Return the load of every checkpoint that has jobs or that a live worker can load, sorted by name."""
    work = _work(session, JobState.QUEUED, JobState.RUNNING)
    workers = _workers(session, silent_after_s)
    shares = _shares(session, silent_after_s)
    return [_load(name, work, workers, shares) for name in sorted(work.keys() | workers.keys())]


def load(session: Session, checkpoint: str, *, second: str | None = None, silent_after_s: float) -> Load:
    """Return the running jobs and the workers of one checkpoint. Queued jobs are left out: there may be a million.

    With the checkpoint of a `second` pass only the workers that can load it, too.
    """
    work = _work(session, JobState.RUNNING, checkpoint=checkpoint)
    of_jobs = {**work.get(checkpoint, {}), "waited_s": _waited_s(session, checkpoint)}
    workers = _workers(session, silent_after_s, checkpoint=checkpoint, beside=second)
    shares = _shares(session, silent_after_s, checkpoint=checkpoint)
    told = _load(checkpoint, {checkpoint: of_jobs}, workers, shares)
    if second is None:
        return told
    of_second = _workers(session, silent_after_s, checkpoint=second, beside=checkpoint)
    return replace(told, second_s=of_second.get(second, {}).get("price_s", 0.0))


def second_checkpoint(row: JobRow) -> str | None:
    """Return the checkpoint of a job's second pass, where it has one of its own."""
    hires = row.params.get("hires") or {}
    own: str | None = hires.get("checkpoint")
    return own


def queued(session: Session) -> Mapping[str, int]:
    """Count the queued jobs of each checkpoint that has any."""
    waiting = select(JobRow.checkpoint, func.count()).where(JobRow.state == JobState.QUEUED).group_by(JobRow.checkpoint)
    return {str(name): int(count) for name, count in session.execute(waiting)}


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


def _load(name: str, work: _Sums, workers: _Sums, shares: Mapping[str, float]) -> Load:
    told = Load(checkpoint=name, **{**work.get(name, {}), **workers.get(name, {})})
    if not told.workers:
        return told
    if share := shares.get(name):
        return replace(told, share=min(1.0, share / told.workers))
    until_resident_s = forecast.turn_s(
        told.price_s, is_loading=told.loading > 0, is_idle=told.idle > 0, waited_s=told.waited_s
    )
    return replace(told, share=max(1, told.loading) / told.workers, is_open=False, turn_s=until_resident_s)


def _shares(session: Session, silent_after_s: float, *, checkpoint: str | None = None) -> Mapping[str, float]:
    """Return how many workers each checkpoint has, counted by the part of each that it has: the open ones share it evenly."""
    takes_jobs = libraries.takes_jobs(silent_after_s)
    runs = (
        select(JobRow.worker_id, JobRow.checkpoint)
        .join(WorkerRow, WorkerRow.id == JobRow.worker_id)
        .where(JobRow.state == JobState.RUNNING, takes_jobs)
    )
    is_open = select(WorkerRow.id.label("worker_id"), WorkerRow.checkpoint).where(takes_jobs).union(runs).subquery().c
    part = 1.0 / func.count().over(partition_by=is_open.worker_id)
    parts = select(is_open.checkpoint, part.label("part")).subquery().c
    shares = select(parts.checkpoint, func.sum(parts.part)).group_by(parts.checkpoint)
    if checkpoint is not None:
        shares = shares.where(parts.checkpoint == checkpoint)
    return {name: float(share) for name, share in session.execute(shares)}


def _waited_s(session: Session, checkpoint: str) -> float:
    """Return for how long the oldest queued job of a checkpoint has waited, in seconds; 0 without one."""
    age = func.extract("epoch", func.now() - func.min(JobRow.created_at))
    waiting = select(age).where(JobRow.state == JobState.QUEUED, JobRow.checkpoint == checkpoint)
    return float(session.execute(waiting).scalar_one() or 0.0)


def _work(session: Session, *states: JobState, checkpoint: str | None = None) -> _Sums:
    is_queued, is_running = JobRow.state == JobState.QUEUED, JobRow.state == JobState.RUNNING
    oldest = func.min(JobRow.created_at).filter(is_queued)
    share_left = 1 - cast(JobRow.steps_done, Float) / func.nullif(JobRow.steps_total, 0)
    query = (
        select(
            JobRow.checkpoint,
            func.count().filter(is_queued),
            func.coalesce(func.sum(JobRow.cost).filter(is_queued), 0),
            oldest,
            func.coalesce(func.extract("epoch", func.now() - oldest), 0),
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
            "oldest": since,
            "waited_s": float(waited_s),
            "running": running,
            "running_cost": int(running_cost),
            "running_cost_left": float(left),
        }
        for name, queued, queued_cost, since, waited_s, running, running_cost, left in session.execute(query)
    }


def _workers(
    session: Session, silent_after_s: float, *, checkpoint: str | None = None, beside: str | None = None
) -> _Sums:
    """Sum up the live workers that can load each checkpoint; with one `beside` it, those that can load both."""
    one = held(silent_after_s).c
    workers = func.count().filter(one.takes_jobs)
    # A worker that has not worked yet counts as fast as the mean of those that have.
    measured = func.count().filter(one.takes_jobs, one.speed > 0)
    busy = select(JobRow.worker_id).where(JobRow.state == JobState.RUNNING, JobRow.worker_id.is_not(None))
    query = (
        select(
            one.checkpoint,
            workers.label("workers"),
            func.count().filter(~one.takes_jobs).label("draining"),
            func.coalesce(func.sum(one.slots).filter(one.takes_jobs), 0).label("slots"),
            (func.sum(one.speed).filter(one.takes_jobs) * workers / func.nullif(measured, 0)).label("speed"),
            func.count().filter(one.takes_jobs, one.tier == Tier.RESIDENT).label("resident"),
            func.count().filter(one.takes_jobs, one.intends == one.checkpoint).label("loading"),
            func.count().filter(one.takes_jobs, one.worker_id.not_in(busy)).label("idle"),
            func.coalesce(func.min(one.price_s).filter(one.takes_jobs), 0.0).label("price_s"),
        )
        .where(one.is_fit, one.refused.is_(None))
        .group_by(one.checkpoint)
    )
    if checkpoint is not None:
        query = query.where(one.checkpoint == checkpoint)
    if beside is not None:
        other = held(silent_after_s).alias("other").c
        able = select(other.worker_id).where(other.checkpoint == beside, other.refused.is_(None))
        query = query.where(one.worker_id.in_(able))
    return {sums.pop("checkpoint"): sums for row in session.execute(query).mappings() if (sums := dict(row))}
