"""List the gpu workers with their health and speed; drain and resume them."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Field

from api.callers import Admin
from api.desk import DeskDep
from api.farm.libraries import libraries_of
from api.openapi import documented
from api.routing import Router
from shared.fleet import registry

router = Router(prefix="/v1/workers", tags=["operations"], responses=documented(503))


class Worker(BaseModel):
    """A gpu worker. Its measurements are null until it has rendered."""

    id: str
    checkpoint: Annotated[str, Field(description="The one that is loaded: its jobs are rendered at once.")]
    intends: Annotated[str | None, Field(description="The checkpoint that it is loading now.")]
    warm: Annotated[list[str], Field(description="The others that it has in memory, and loads in a moment.")]
    library: Annotated[int, Field(description="How many checkpoints it can load in all.")]
    refused: Annotated[int, Field(description="How many it has and cannot load; `/v1/checkpoints` says why.")]
    keeps: Annotated[int, Field(description="How many checkpoints its memory keeps warm.")]
    swaps: Annotated[int, Field(description="How often it has changed checkpoints since it started.")]
    hostname: str
    device: str
    slots: Annotated[int, Field(description="How many jobs it renders at the same time.")]
    running: Annotated[int, Field(description="Jobs that it renders now.")]
    is_alive: Annotated[bool, Field(description="Whether its last heartbeat is younger than the lease.")]
    unfit: Annotated[str | None, Field(description="Why it took itself out of service; null while it is healthy.")]
    draining_at: Annotated[
        datetime | None, Field(description="Since when it drains: takes no new jobs and then exits.")
    ]
    temperature_c: Annotated[float | None, Field(description="Temperature of its GPU in °C, if the driver reports it.")]
    ecc_errors: Annotated[int | None, Field(description="Uncorrectable memory errors of its GPU.")]
    xid: Annotated[int | None, Field(description="The last Xid error that the NVIDIA driver reported for its GPU.")]
    started_at: datetime
    seen_at: Annotated[datetime, Field(description="Its last heartbeat.")]
    tick_s: Annotated[float | None, Field(description="Mean seconds of an engine tick, one UNet call.")]
    batch_fill: Annotated[float | None, Field(description="Mean number of images per UNet call.")]
    speed: Annotated[float | None, Field(description="Latent pixels that it denoises per second, while it has work.")]


class Workers(BaseModel):
    """All workers seen within the last day, sorted by id."""

    workers: list[Worker]


@router.get("", summary="List the workers")
def listing(desk: DeskDep, _caller: Admin) -> Workers:
    """List the gpu workers, silent ones too."""
    with desk.db.transaction() as session:
        rows = registry.workers(session, silent_after_s=desk.settings.lease_seconds)
        libraries = libraries_of(session, silent_after_s=desk.settings.lease_seconds)
    return Workers(workers=[Worker(**asdict(row), **asdict(libraries[row.id])) for row in rows])


@router.post("/{worker_id}/drain", status_code=204, responses=documented(404, 422), summary="Drain a worker")
def drain(worker_id: str, desk: DeskDep, _caller: Admin) -> None:
    """Let a worker finish its running jobs and exit. If it is started again, it stays idle until it is resumed."""
    with desk.db.transaction() as session:
        registry.drain(session, worker_id, is_draining=True)


@router.post("/{worker_id}/resume", status_code=204, responses=documented(404, 422), summary="Resume a worker")
def resume(worker_id: str, desk: DeskDep, _caller: Admin) -> None:
    """Let a drained worker take jobs again."""
    with desk.db.transaction() as session:
        registry.drain(session, worker_id, is_draining=False)
