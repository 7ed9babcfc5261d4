"""The wire format of `Job` and `Batch`: the same in responses, events and webhooks."""

from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal
from uuid import UUID

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, JsonValue

from shared.vocabulary.forecast import Forecast, Reason
from shared.vocabulary.params import GenerationParams
from shared.vocabulary.states import JobState

if TYPE_CHECKING:  # clients read jobs without a database
    from shared.infra.tables import BatchRow, ImageRow, JobRow
    from shared.jobs.batches import Tally

# The path under which the client of the request at hand reaches the API, where a proxy serves it beneath another than the root.
PREFIX = ContextVar("prefix", default="")

EXAMPLE: dict[str, JsonValue] = {
    "id": "019a96d0-5b1e-7c3f-9d2a-3f1c5d7e9b01",
    "state": "running",
    "version": 14,
    "progress": {"steps_done": 12, "steps_total": 20},
    "priority": 0,
    "seeds": [42],
    "images": [],
    "params": {
        "kind": "txt2img",
        "checkpoint": "farm-demo",
        "vae": None,
        "prompt": "a red circle on a blue background",
        "negative_prompt": "",
        "steps": 20,
        "guidance_scale": 7.0,
        "width": 256,
        "height": 256,
        "seed": 42,
        "num_images": 1,
        "variation": None,
        "sampler": "dpmpp_2m",
        "schedule": "karras",
        "clip_skip": 1,
        "loras": [],
        "init_image": None,
        "resize_mode": "stretch",
        "strength": None,
        "mask_image": None,
        "inpaint": None,
        "hires": None,
        "upscale": 1.0,
    },
    "timings": {
        "created_at": "2026-11-23T12:00:00.000000Z",
        "started_at": "2026-11-23T12:00:00.020000Z",
        "finished_at": None,
        "retry_at": None,
        "expires_at": None,
        "queued_s": 0.02,
        "render_s": None,
        "total_s": None,
    },
    "resumed_from_step": 0,
    "attempt": 1,
    "max_attempts": 3,
    "timeout_s": 3600,
    "retry_of": None,
    "batch_id": None,
    "batch_index": None,
    "worker": "gpu0.farm-demo@render-1",
    "error": None,
    "outlook": {"position": None, "reason": None, "start_s": 0.0, "finish_s": 3.2},
}


BATCH_EXAMPLE: dict[str, JsonValue] = {
    "id": "019a96d0-5b1e-7c3f-9d2a-3f1c5d7e9c01",
    "name": "how many steps are enough",
    "state": "unfinished",
    "total": 4,
    "counts": {"queued": 2, "running": 1, "succeeded": 1, "failed": 0, "canceled": 0, "expired": 0},
    "removed": 0,
    "progress": {"steps_done": 14, "steps_total": 60},
    "sweep": [{"parameter": "guidance_scale", "values": [5.0, 9.0]}, {"parameter": "steps", "values": [10, 20]}],
    "created_at": "2026-11-23T12:00:00.000000Z",
    "finished_at": None,
}


class Progress(BaseModel):
    """Denoising steps over all images of the present attempt."""

    steps_done: int
    steps_total: int


class Image(BaseModel):
    """One finished image. `url` is a path of this API that redirects to the bytes."""

    index: int
    seed: int
    url: str
    content_type: str
    width: int
    height: int
    size_bytes: int
    sha256: str
    flagged: Annotated[bool, Field(description="Blacked out by the safety checker.")] = False


class Timings(BaseModel):
    """Times of a job, UTC, and durations in seconds. Null until they are known."""

    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    retry_at: Annotated[datetime | None, Field(description="A queued job's next attempt starts no earlier.")]
    expires_at: Annotated[datetime | None, Field(description="If it is still queued then, it expires.")]
    queued_s: Annotated[float | None, Field(description="From `created_at` to `started_at`.")]
    render_s: Annotated[float | None, Field(description="From `started_at` to `finished_at`.")]
    total_s: Annotated[float | None, Field(description="From `created_at` to `finished_at`.")]


class Problem(BaseModel):
    """Why the job, or its last attempt, failed."""

    code: str
    message: str
    retryable: bool


class Outlook(BaseModel):
    """What an unfinished job waits for and when it will be done, in seconds from now; null where nobody can know.

    Estimated from measured speeds; jobs of higher priority that come later put it off.
    """

    position: Annotated[int | None, Field(description="How many jobs will start before this one; null when it runs.")]
    reason: Annotated[Reason | None, Field(description="Why it does not run yet.")]
    start_s: float | None
    finish_s: float | None


class Job(BaseModel):
    """A job as it is now. `version` only grows; a final state never changes."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    id: UUID
    state: JobState
    version: int
    progress: Progress
    priority: int = 0
    seeds: Annotated[list[int], Field(description="The seed of each image, in order.")]
    images: list[Image]
    params: GenerationParams
    timings: Timings
    resumed_from_step: Annotated[
        int, Field(description="The step at which the present or last attempt went on with an earlier one's work.")
    ] = 0
    attempt: Annotated[int, Field(description="How often a worker has claimed the job.")]
    max_attempts: int
    timeout_s: Annotated[float | None, Field(description="How long one attempt may run. Null: for ever.")]
    retry_of: Annotated[UUID | None, Field(description="The job that this one repeats.")]
    batch_id: Annotated[UUID | None, Field(description="The batch that it came with.")] = None
    batch_index: Annotated[int | None, Field(description="Its place in that batch, from 0.")] = None
    worker: str | None
    error: Problem | None
    outlook: Annotated[
        Outlook | None, Field(description="Only where one unfinished job is asked for; null in lists and events.")
    ] = None

    @classmethod
    def of(cls, row: "JobRow", forecast: Forecast | None = None, *, prefix: str | None = None) -> "Job":
        """Build it from a row and its forecast, with links under `prefix`, or under that of the request at hand."""
        params = GenerationParams.model_validate(row.params)
        links = PREFIX.get() if prefix is None else prefix
        return cls(
            id=row.shown_id,
            state=JobState(row.state),
            version=row.version,
            progress=Progress(steps_done=row.steps_done, steps_total=row.steps_total),
            priority=row.priority,
            seeds=list(params.seeds),
            images=[_image(image, f"{links}/v1/jobs/{row.shown_id}") for image in row.images],
            params=params,
            timings=_timings(row),
            resumed_from_step=row.resumed_from_step,
            attempt=row.attempt,
            max_attempts=row.max_attempts,
            timeout_s=row.timeout_s,
            retry_of=row.retry_of,
            batch_id=row.batch_id,
            batch_index=row.batch_index,
            worker=row.worker_id,
            error=_problem(row),
            outlook=_outlook(forecast) if forecast else None,
        )


class Steps(BaseModel):
    """The data of a `progress` event."""

    job_id: UUID
    version: int
    steps_done: int
    steps_total: int


class Preview(BaseModel):
    """The data of a `preview` event: an image of the job as it takes shape, small and rough. `data` is base64."""

    job_id: UUID
    index: int
    content_type: str
    data: Base64Bytes


class Axis(BaseModel):
    """One parameter of a sweep, and the values that it takes in turn."""

    parameter: str
    values: list[JsonValue]


class Batch(BaseModel):
    """Jobs that were submitted together, as they are now. Finished when each has ended, however it did."""

    model_config = ConfigDict(json_schema_extra={"examples": [BATCH_EXAMPLE]})

    id: UUID
    name: str | None
    state: Literal["unfinished", "finished"]
    total: int
    counts: Annotated[dict[JobState, int], Field(description="How many of its jobs are in each state.")]
    removed: Annotated[int, Field(description="How many were deleted since.")]
    progress: Annotated[Progress, Field(description="Of all its jobs together.")]
    sweep: Annotated[
        list[Axis],
        Field(description="What varies: in a grid the last changes fastest, in a zip all change together. Else empty."),
    ]
    created_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, row: "BatchRow", tally: "Tally") -> "Batch":
        """Build it from a row and the sums over its jobs."""
        return cls(
            id=row.id,
            name=row.name,
            state="unfinished" if row.unfinished else "finished",
            total=row.total,
            counts={state: tally.counts.get(state, 0) for state in JobState},
            removed=row.total - sum(tally.counts.values()),
            progress=Progress(steps_done=tally.steps_done, steps_total=tally.steps_total),
            sweep=[Axis.model_validate(axis) for axis in row.axes],
            created_at=row.created_at,
            finished_at=row.finished_at,
        )


def _image(row: "ImageRow", job: str) -> Image:
    return Image(
        index=row.index,
        seed=row.seed,
        url=f"{job}/images/{row.index}",
        content_type=row.content_type,
        width=row.width,
        height=row.height,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        flagged=row.flagged,
    )


def _outlook(forecast: Forecast) -> Outlook:
    return Outlook(
        position=forecast.position,
        reason=forecast.reason,
        start_s=_rounded(forecast.start_s),
        finish_s=_rounded(forecast.finish_s),
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _timings(row: "JobRow") -> Timings:
    return Timings(
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        retry_at=row.not_before,
        expires_at=row.expires_at,
        queued_s=_seconds(row.created_at, row.started_at),
        render_s=_seconds(row.started_at, row.finished_at),
        total_s=_seconds(row.created_at, row.finished_at),
    )


def _seconds(begin: datetime | None, end: datetime | None) -> float | None:
    return round((end - begin).total_seconds(), 3) if begin and end else None


def _problem(row: "JobRow") -> Problem | None:
    if row.error_code is None:
        return None
    return Problem(code=row.error_code, message=row.error_message or "", retryable=bool(row.error_retryable))
