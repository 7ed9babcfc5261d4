"""Lists of what jobs may name: checkpoints, LoRAs, embeddings, VAEs, samplers and schedules."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated

from fastapi import Depends
from pydantic import BaseModel, Field

from api.callers import reader
from api.desk import Desk, DeskDep
from api.farm import checkpoints as listing
from api.farm import queue_stats
from api.openapi import documented
from api.routing import Router
from shared.files.weights import Kind
from shared.fleet import registry
from shared.vocabulary.samplers import SAMPLER_LABELS, SCHEDULES, Sampler, Schedule

router = Router(prefix="/v1", tags=["choices"], dependencies=[Depends(reader)], responses=documented(401, 403, 429))


class Checkpoint(BaseModel):
    """A checkpoint and the workers that can load it. Jobs for a checkpoint without ready workers wait in the queue.

    One that is `refused` is not waited for: a job that names it is refused. Admins see which workers it is on at `/v1/workers`.
    """

    name: str
    size_bytes: int
    sha256: Annotated[
        str | None, Field(description="Of its file, in hexadecimal; null until a worker has read it as a whole.")
    ]
    ready_workers: Annotated[
        int, Field(description="Live workers that can load it and take jobs; draining ones do not count.")
    ]
    slots: Annotated[int, Field(description="How many jobs those workers render at the same time, of all checkpoints.")]
    resident_workers: Annotated[int, Field(description="How many of them have it loaded: they render it at once.")]
    warm_workers: Annotated[
        int, Field(description="How many others have it in memory: they load it in a moment, not from disk.")
    ]
    loading_workers: Annotated[int, Field(description="How many are loading it now.")]
    price_s: Annotated[
        float | None,
        Field(description="The least seconds until one of them has loaded it; 0 where one has, null without any."),
    ]
    queued: Annotated[int, Field(description="Jobs that wait for it.")]
    refused: Annotated[
        str | None, Field(description="Why no worker can load it, where each that has it refuses it; else null.")
    ]
    announced_at: Annotated[datetime, Field(description="When a worker first announced it.")]


class Checkpoints(BaseModel):
    """Every checkpoint that workers have announced, sorted by name, and which one a job gets that names none."""

    checkpoints: list[Checkpoint]
    default: Annotated[
        str | None,
        Field(description="What a job gets that names none; null where it must name one because there are several."),
    ]


class Weights(BaseModel):
    """A LoRA, embedding or VAE. Jobs may name it by its name or its alias."""

    name: str
    alias: str | None
    size_bytes: int
    vectors: Annotated[
        int | None, Field(description="Tokens that an embedding takes in a prompt; null for LoRAs and VAEs.")
    ]


class WeightsList(BaseModel):
    """All files of one kind in the folders of the workers, sorted by name."""

    weights: list[Weights]


class SamplerChoice(BaseModel):
    """A sampler and its schedules, the default first."""

    name: Sampler
    label: Annotated[str, Field(description="Display name, in the style of AUTOMATIC1111.")]
    schedules: list[Schedule]


class Samplers(BaseModel):
    """Every sampler that jobs may name."""

    samplers: list[SamplerChoice]


@router.get("/checkpoints", summary="List checkpoints", responses=documented(503))
def checkpoints(desk: DeskDep) -> Checkpoints:
    """List the checkpoints that workers can load or could, with how near they have them, and those that they refuse."""
    with desk.db.transaction() as session:
        served = listing.checkpoints(session, silent_after_s=desk.settings.lease_seconds)
        queued = queue_stats.queued(session)
    return Checkpoints(
        checkpoints=[Checkpoint(**asdict(one), queued=queued.get(one.name, 0)) for one in served],
        default=listing.by_default(served, desk.settings.default_checkpoint),
    )


@router.get("/loras", summary="List LoRAs", responses=documented(503))
def loras(desk: DeskDep) -> WeightsList:
    """List the LoRAs, for the `loras` field and `<lora:name:weight>` in prompts."""
    return _weights(desk, Kind.LORA)


@router.get("/embeddings", summary="List embeddings", responses=documented(503))
def embeddings(desk: DeskDep) -> WeightsList:
    """List the textual-inversion embeddings. Write the name of one into a prompt to use it."""
    return _weights(desk, Kind.EMBEDDING)


@router.get("/vaes", summary="List VAEs", responses=documented(503))
def vaes(desk: DeskDep) -> WeightsList:
    """List the VAEs, for the `vae` field."""
    return _weights(desk, Kind.VAE)


@router.get("/samplers", summary="List samplers")
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
