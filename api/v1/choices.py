"""What a job may name: the checkpoints of the fleet, the samplers and their schedules."""

from datetime import datetime

from fastapi import APIRouter
from pydantic import BaseModel

from api.deps import DeskDep
from api.problems import documented
from shared import fleet
from shared.params import SCHEDULES, Sampler, Schedule

router = APIRouter(prefix="/v1", tags=["choices"])


class Checkpoint(BaseModel):
    """A checkpoint and how many live workers hold it. Jobs for one without workers wait."""

    name: str
    size_bytes: int
    ready_workers: int
    slots: int
    announced_at: datetime


class Checkpoints(BaseModel):
    """Every checkpoint that jobs may name."""

    checkpoints: list[Checkpoint]


class SamplerChoice(BaseModel):
    """A sampler and the schedules it can walk, the default first."""

    name: Sampler
    schedules: list[Schedule]


class Samplers(BaseModel):
    """Every sampler that jobs may name."""

    samplers: list[SamplerChoice]


@router.get("/checkpoints", responses=documented(503))
def checkpoints(desk: DeskDep) -> Checkpoints:
    """List the checkpoints that workers have announced."""
    with desk.db.transaction() as session:
        served = fleet.checkpoints(session, silent_after_s=desk.settings.lease_seconds)
    return Checkpoints(checkpoints=[Checkpoint.model_validate(one, from_attributes=True) for one in served])


@router.get("/samplers")
def samplers() -> Samplers:
    """List the samplers with their schedules."""
    return Samplers(samplers=[SamplerChoice(name=name, schedules=list(able)) for name, able in SCHEDULES.items()])
