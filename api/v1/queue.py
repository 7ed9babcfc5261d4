"""How much waits per checkpoint, who works on it, how long a job submitted now would wait, and what the last hour got done."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from api.callers import Reader
from api.desk import Desk, DeskDep
from api.farm import queue_stats, throughput
from api.farm.throughput import MINUTES, Minute
from api.problems import documented
from shared.infra.db import JobRow
from shared.jobs import fair_queue
from shared.vocabulary import forecast
from shared.vocabulary.forecast import Ahead, Forecast, Load
from shared.vocabulary.states import JobState

router = APIRouter(prefix="/v1", tags=["operations"], responses=documented(503))


class CheckpointQueue(BaseModel):
    """One checkpoint's queue. Times are in seconds; the predicted wait is null while no live worker has been measured."""

    checkpoint: str
    queued: int
    running: int
    oldest_queued_at: datetime | None
    workers: int
    slots: int
    predicted_wait_s: Annotated[float | None, Field(description="Until a job submitted now would start.")]
    backlog_s: Annotated[float | None, Field(description="Until all that is queued and running now would be done.")]


class Queue(BaseModel):
    """Every checkpoint that has jobs or workers."""

    queued: int
    running: int
    checkpoints: list[CheckpointQueue]


class CheckpointThroughput(BaseModel):
    """What one checkpoint's jobs came to. Each list has an entry a minute, the oldest first."""

    checkpoint: str
    pictures: list[int]
    succeeded: Annotated[list[int], Field(description="Jobs, by the minute of their end.")]
    failed: list[int]
    wait_s: Annotated[
        list[float | None],
        Field(description="Mean seconds from submission to the start of those that succeeded; null where none did."),
    ]


class Throughput(BaseModel):
    """The last 60 minutes of every checkpoint that ended jobs in them. Jobs deleted since are not counted."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "since": "2026-11-24T12:00:00Z",
                    "minutes": 60,
                    "checkpoints": [
                        {
                            "checkpoint": "v1-5-pruned-emaonly",
                            "pictures": [8] * 60,
                            "succeeded": [2] * 60,
                            "failed": [0] * 60,
                            "wait_s": [1.5] * 60,
                        }
                    ],
                }
            ]
        }
    )

    since: Annotated[datetime, Field(description="When the first minute began.")]
    minutes: int
    checkpoints: list[CheckpointThroughput]


@router.get("/queue", summary="Show what waits")
def show(desk: DeskDep, _caller: Reader) -> Queue:
    """Show depth, oldest job, workers and predicted wait of every checkpoint."""
    with desk.db.transaction() as session:
        loads = queue_stats.loads(session, silent_after_s=desk.settings.lease_seconds)
    return Queue(
        queued=sum(load.queued for load in loads),
        running=sum(load.running for load in loads),
        checkpoints=[_shown(load) for load in loads],
    )


@router.get("/throughput", summary="Show what the last hour got done")
def last_hour(desk: DeskDep, _caller: Reader) -> Throughput:
    """Show pictures, jobs and their mean wait minute by minute, for every checkpoint. The last minute is the running one."""
    with desk.db.transaction() as session:
        hour = throughput.last_hour(session)
    shown = [_by_minute(checkpoint, minutes) for checkpoint, minutes in hour.checkpoints.items()]
    return Throughput(since=hour.since, minutes=MINUTES, checkpoints=shown)


def outlook(session: Session, desk: Desk, row: JobRow) -> Forecast | None:
    """Predict an unfinished job; None for one that has ended."""
    state = JobState(row.state)
    if state.is_final:
        return None
    load = queue_stats.load(session, row.checkpoint, silent_after_s=desk.settings.lease_seconds)
    if state is JobState.RUNNING:
        return forecast.forecast_running(load, queue_stats.cost_left(row))
    held = fair_queue.held(session, row.owner)
    due_in_s = queue_stats.due_in_s(session, row)
    return forecast.forecast_queued(load, queue_stats.ahead(session, row), row.cost, held=held, due_in_s=due_in_s)


def _by_minute(checkpoint: str, ended: Mapping[int, Minute]) -> CheckpointThroughput:
    minutes = [ended.get(place, Minute()) for place in range(MINUTES)]
    return CheckpointThroughput(
        checkpoint=checkpoint,
        pictures=[minute.pictures for minute in minutes],
        succeeded=[minute.succeeded for minute in minutes],
        failed=[minute.failed for minute in minutes],
        wait_s=[None if minute.wait_s is None else round(minute.wait_s, 2) for minute in minutes],
    )


def _shown(load: Load) -> CheckpointQueue:
    new_job = forecast.forecast_queued(load, Ahead(load.queued, load.queued_cost), 0)
    backlog = load.queued_cost + load.running_cost_left
    return CheckpointQueue(
        checkpoint=load.checkpoint,
        queued=load.queued,
        running=load.running,
        oldest_queued_at=load.oldest,
        workers=load.workers,
        slots=load.slots,
        predicted_wait_s=None if new_job.start_s is None else round(new_job.start_s, 1),
        backlog_s=round(backlog / load.speed, 1) if load.speed else None,
    )
