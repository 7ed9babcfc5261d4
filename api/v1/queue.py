"""The queue per checkpoint with wait estimates, and the throughput of the last hour."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from api.callers import Reader
from api.desk import Desk, DeskDep
from api.farm import queue_stats, throughput
from api.farm.throughput import MINUTES, Minute
from api.openapi import documented
from api.routing import Router
from shared.infra.tables import JobRow
from shared.jobs import fair_queue
from shared.vocabulary import forecast
from shared.vocabulary.forecast import Ahead, Forecast, Load
from shared.vocabulary.states import JobState

router = Router(prefix="/v1", tags=["operations"], responses=documented(503))


class CheckpointQueue(BaseModel):
    """The queue of one checkpoint. Estimates are in seconds, null while no live worker has measured its speed.

    They take each worker to share itself evenly among the checkpoints whose jobs it renders.
    """

    checkpoint: str
    queued: Annotated[int, Field(description="Jobs that wait.")]
    running: Annotated[int, Field(description="Jobs that are rendered now.")]
    oldest_queued_at: Annotated[datetime | None, Field(description="When the oldest waiting job was submitted.")]
    workers: Annotated[
        int, Field(description="Live workers that can load it and take jobs; draining ones do not count.")
    ]
    slots: Annotated[int, Field(description="How many jobs those workers render at the same time, of all checkpoints.")]
    resident_workers: Annotated[int, Field(description="How many of them have it loaded.")]
    loading_workers: Annotated[int, Field(description="How many are loading it now.")]
    predicted_wait_s: Annotated[
        float | None, Field(description="Seconds until a job submitted now would start, loading included.")
    ]
    backlog_s: Annotated[float | None, Field(description="Seconds until all queued and running jobs would be done.")]


class Queue(BaseModel):
    """All checkpoints that have jobs or workers, and the sums over them."""

    queued: Annotated[int, Field(description="Jobs that wait, of all checkpoints.")]
    running: Annotated[int, Field(description="Jobs that are rendered now, of all checkpoints.")]
    checkpoints: list[CheckpointQueue]


class CheckpointThroughput(BaseModel):
    """Jobs of one checkpoint that ended, minute by minute. Each list has one entry per minute, the oldest first."""

    checkpoint: str
    pictures: Annotated[list[int], Field(description="Images of the jobs that succeeded.")]
    succeeded: Annotated[list[int], Field(description="Jobs that succeeded.")]
    failed: Annotated[list[int], Field(description="Jobs that failed.")]
    wait_s: Annotated[
        list[float | None],
        Field(description="Mean seconds from submission to start of the jobs that succeeded; null without any."),
    ]


class Throughput(BaseModel):
    """The last 60 minutes, for all checkpoints whose jobs ended in them. Deleted jobs are not counted."""

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

    since: Annotated[datetime, Field(description="Start of the first minute.")]
    minutes: int
    checkpoints: list[CheckpointThroughput]


@router.get("/queue", summary="Show the queue")
def show(desk: DeskDep, _caller: Reader) -> Queue:
    """Show queued and running jobs, workers and the estimated wait of each checkpoint."""
    with desk.db.transaction() as session:
        loads = queue_stats.loads(session, silent_after_s=desk.settings.lease_seconds)
    return Queue(
        queued=sum(load.queued for load in loads),
        running=sum(load.running for load in loads),
        checkpoints=[_shown(load) for load in loads],
    )


@router.get("/throughput", summary="Show the throughput of the last hour")
def last_hour(desk: DeskDep, _caller: Reader) -> Throughput:
    """Show images, ended jobs and their mean wait, by checkpoint and minute. The last minute is the current one."""
    with desk.db.transaction() as session:
        hour = throughput.last_hour(session)
    checkpoints = [_by_minute(checkpoint, minutes) for checkpoint, minutes in hour.checkpoints.items()]
    return Throughput(since=hour.since, minutes=MINUTES, checkpoints=checkpoints)


def outlook(session: Session, desk: Desk, row: JobRow) -> Forecast | None:
    """Estimate when an unfinished job starts and ends; None for a final job."""
    state = JobState(row.state)
    if state.is_final:
        return None
    second = queue_stats.second_checkpoint(row)
    load = queue_stats.load(session, row.checkpoint, second=second, silent_after_s=desk.settings.lease_seconds)
    if state is JobState.RUNNING:
        return forecast.forecast_running(load, queue_stats.cost_left(row))
    held = fair_queue.block_reason(session, row.owner)
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
        resident_workers=load.resident,
        loading_workers=load.loading,
        predicted_wait_s=None if new_job.start_s is None else round(new_job.start_s, 1),
        backlog_s=round((load.turn_s if backlog else 0.0) + backlog / load.pace, 1) if load.pace else None,
    )
