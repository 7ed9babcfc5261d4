"""The gpu workers: what each serves, how fast it goes, and whether it is still there."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field

from api.callers import Admin
from api.desk import DeskDep
from api.problems import documented
from shared.fleet import registry

router = APIRouter(prefix="/v1/workers", tags=["operations"], responses=documented(503))


class Worker(BaseModel):
    """One gpu worker. What it measured is null until it has had work."""

    id: str
    checkpoint: str
    hostname: str
    device: str
    slots: int
    running: Annotated[int, Field(description="Jobs that it runs now.")]
    is_alive: Annotated[bool, Field(description="Whether it was heard of within the lease.")]
    unfit: Annotated[str | None, Field(description="Why it took itself out of service; null while it is well.")]
    draining_at: Annotated[datetime | None, Field(description="Since when it is asked to finish and leave.")]
    temperature_c: Annotated[float | None, Field(description="Of its GPU, where the driver tells.")]
    ecc_errors: Annotated[int | None, Field(description="Memory errors of its GPU beyond correction.")]
    xid: Annotated[int | None, Field(description="The Xid that the driver reported of its GPU last.")]
    started_at: datetime
    seen_at: datetime
    tick_s: Annotated[float | None, Field(description="Mean seconds of one engine tick, which is one UNet call.")]
    batch_fill: Annotated[float | None, Field(description="Mean number of images in a UNet call.")]
    speed: Annotated[float | None, Field(description="Latent pixels through the UNet a second, while it had work.")]


class Workers(BaseModel):
    """Every worker heard of within a day, by id."""

    workers: list[Worker]


@router.get("", summary="List the workers")
def listing(desk: DeskDep, _caller: Admin) -> Workers:
    """List the gpu workers, also those that went silent."""
    with desk.db.transaction() as session:
        rows = registry.workers(session, silent_after_s=desk.settings.lease_seconds)
    return Workers(workers=[Worker.model_validate(row, from_attributes=True) for row in rows])


@router.post("/{worker_id}/drain", status_code=204, responses=documented(404, 422), summary="Drain a worker")
def drain(worker_id: str, desk: DeskDep, _caller: Admin) -> None:
    """Let a worker finish what it runs and leave. Started again, it stays idle until it is resumed."""
    with desk.db.transaction() as session:
        registry.drain(session, worker_id, is_draining=True)


@router.post("/{worker_id}/resume", status_code=204, responses=documented(404, 422), summary="Take a worker back")
def resume(worker_id: str, desk: DeskDep, _caller: Admin) -> None:
    """Let a worker that was drained work again."""
    with desk.db.transaction() as session:
        registry.drain(session, worker_id, is_draining=False)
