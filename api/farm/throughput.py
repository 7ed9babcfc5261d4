"""Throughput of the last hour: jobs that ended, by checkpoint and minute. Reads only."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Float, Integer, Select, cast, extract, func, select
from sqlalchemy.orm import Session

from shared.infra.tables import JobRow
from shared.vocabulary.states import JobState

MINUTES = 60


@dataclass(frozen=True, slots=True)
class Minute:
    """Jobs that ended within one minute. `wait_s` is the mean seconds from submission to start of those that succeeded."""

    succeeded: int = 0
    pictures: int = 0
    wait_s: float | None = None
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Hour:
    """The last 60 minutes, the current one included: by checkpoint, then by minute from 0. Empty minutes are missing."""

    since: datetime
    checkpoints: Mapping[str, Mapping[int, Minute]]


def last_hour(session: Session) -> Hour:
    """Sum up the jobs that ended. Deleted jobs are not counted."""
    this_minute = session.execute(select(func.date_trunc("minute", func.now()))).scalar_one()
    since = this_minute - timedelta(minutes=MINUTES - 1)
    checkpoints: dict[str, dict[int, Minute]] = {}
    for checkpoint, minute, *sums in session.execute(_sums(since)):
        checkpoints.setdefault(checkpoint, {})[minute] = Minute(*sums)
    return Hour(since, checkpoints)


def _sums(since: datetime) -> Select[Any]:
    """Read what ended since then by the index `jobs_finished`; pictures are counted as they were asked for, without a join."""
    place = cast(func.floor(extract("epoch", JobRow.finished_at - since) / 60), Integer)
    is_good, is_bad = JobRow.state == JobState.SUCCEEDED, JobRow.state == JobState.FAILED
    pictures = func.sum(cast(JobRow.params["num_images"].astext, Integer)).filter(is_good)
    wait = func.avg(cast(extract("epoch", JobRow.started_at - JobRow.created_at), Float)).filter(is_good)
    return (
        select(
            JobRow.checkpoint,
            place.label("place"),
            func.count().filter(is_good),
            func.coalesce(pictures, 0),
            wait,
            func.count().filter(is_bad),
        )
        .where(JobRow.finished_at >= since)
        .group_by(JobRow.checkpoint, "place")
        .order_by(JobRow.checkpoint, "place")
    )
