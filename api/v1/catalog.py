"""What a job may name: the checkpoints of the fleet, LoRAs, embeddings, VAEs, the samplers and their schedules."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from api.callers import reader
from api.desk import Desk, DeskDep
from api.problems import documented
from shared.files.weights import Kind
from shared.fleet import registry
from shared.vocabulary.samplers import SAMPLER_LABELS, SCHEDULES, Sampler, Schedule

router = APIRouter(prefix="/v1", tags=["choices"], dependencies=[Depends(reader)], responses=documented(401, 403, 429))


class Checkpoint(BaseModel):
    """A checkpoint and how many workers take jobs for it; draining ones take none. Jobs for one without workers wait."""

    name: str
    size_bytes: int
    ready_workers: int
    slots: int
    announced_at: datetime


class Checkpoints(BaseModel):
    """Every checkpoint that jobs may name."""

    checkpoints: list[Checkpoint]


class Weights(BaseModel):
    """A LoRA, embedding or VAE. Jobs may also call it by its alias."""

    name: str
    alias: str | None
    size_bytes: int
    vectors: Annotated[int | None, Field(description="How many tokens an embedding takes; null for the others.")]


class WeightsList(BaseModel):
    """All weights of a kind that the workers have in their folders, by name."""

    weights: list[Weights]


class SamplerChoice(BaseModel):
    """A sampler and the schedules it can walk, the default first."""

    name: Sampler
    label: str
    schedules: list[Schedule]


class Samplers(BaseModel):
    """Every sampler that jobs may name."""

    samplers: list[SamplerChoice]


@router.get("/checkpoints", responses=documented(503))
def checkpoints(desk: DeskDep) -> Checkpoints:
    """List the checkpoints that workers have announced."""
    with desk.db.transaction() as session:
        served = registry.checkpoints(session, silent_after_s=desk.settings.lease_seconds)
    return Checkpoints(checkpoints=[Checkpoint.model_validate(one, from_attributes=True) for one in served])


@router.get("/loras", responses=documented(503))
def loras(desk: DeskDep) -> WeightsList:
    """List the LoRAs, for the `loras` field and `<lora:name:weight>` in prompts."""
    return _weights(desk, Kind.LORA)


@router.get("/embeddings", responses=documented(503))
def embeddings(desk: DeskDep) -> WeightsList:
    """List the textual-inversion embeddings; their names act in any prompt."""
    return _weights(desk, Kind.EMBEDDING)


@router.get("/vaes", responses=documented(503))
def vaes(desk: DeskDep) -> WeightsList:
    """List the VAEs, for the `vae` field."""
    return _weights(desk, Kind.VAE)


@router.get("/samplers")
def samplers() -> Samplers:
    """List the samplers with their schedules."""
    return Samplers(
        samplers=[
            SamplerChoice(name=name, label=SAMPLER_LABELS[name], schedules=list(able))
            for name, able in SCHEDULES.items()
        ]
    )


def _weights(desk: Desk, kind: Kind) -> WeightsList:
    with desk.db.transaction() as session:
        rows = registry.weights(session, kind, silent_after_s=desk.settings.lease_seconds)
    return WeightsList(weights=[Weights.model_validate(row, from_attributes=True) for row in rows])
