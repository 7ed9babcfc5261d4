"""How much waits per checkpoint, who works on it, and how long a job submitted now would wait."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from api.callers import Reader
from api.deps import Desk, DeskDep
from api.problems import documented
from shared import forecast, queue, shares
from shared.db import JobRow
from shared.forecast import Ahead, Forecast, Load
from shared.states import JobState

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


@router.get("/queue", summary="Show what waits")
def show(desk: DeskDep, _caller: Reader) -> Queue:
    """Show depth, oldest job, workers and predicted wait of every checkpoint."""
    with desk.db.transaction() as session:
        loads = queue.loads(session, silent_after_s=desk.settings.lease_seconds)
    return Queue(
        queued=sum(load.queued for load in loads),
        running=sum(load.running for load in loads),
        checkpoints=[_shown(load) for load in loads],
    )


def outlook(session: Session, desk: Desk, row: JobRow) -> Forecast | None:
    """Predict an unfinished job; None for one that has ended."""
    state = JobState(row.state)
    if state.is_final:
        return None
    load = queue.load(session, row.checkpoint, silent_after_s=desk.settings.lease_seconds)
    if state is JobState.RUNNING:
        return forecast.forecast_running(load, queue.cost_left(row))
    held = shares.held(session, row.owner)
    return forecast.forecast_queued(load, queue.ahead(session, row), row.cost, held=held)


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
