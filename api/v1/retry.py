"""Retry jobs that failed, expired or were canceled: one by its id, or many by a filter."""

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

from fastapi import Response
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from api import stored_images
from api.callers import Caller, Submitter
from api.desk import Desk, DeskDep, JobId
from api.jobs import retries
from api.jobs.retries import RETRIED_AT_ONCE, Dead
from api.openapi import documented
from api.routing import Router
from shared.infra.tables import ImageRow
from shared.jobs import lifecycle
from shared.jobs.wire import Job
from shared.vocabulary.params import reject_nul
from shared.vocabulary.states import JobState

router = Router(prefix="/v1/jobs", tags=["jobs"], responses=documented(401, 403, 422, 429, 503))

Name = Annotated[str, Field(max_length=100), AfterValidator(reject_nul)]


class RetryFilter(BaseModel):
    """Which failed and expired jobs to retry: those that match every given field, the oldest first."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"error_code": "worker_lost"}]})

    error_code: Annotated[Name | None, Field(description="Only jobs that failed with this code.")] = None
    checkpoint: Annotated[Name | None, Field(description="Only jobs for this checkpoint.")] = None
    since: Annotated[AwareDatetime | None, Field(description="Only jobs that ended at or after this time.")] = None
    limit: Annotated[int, Field(ge=1, le=RETRIED_AT_ONCE, description="The most jobs to retry.")] = RETRIED_AT_ONCE


class Retried(BaseModel):
    """Ids of the new jobs, by the ids of the retried ones. If there are as many as `limit`, ask again: there may be more."""

    jobs: dict[UUID, UUID]


@router.post("/retry", status_code=202, summary="Retry failed and expired jobs")
def retry_many(wanted: RetryFilter, desk: DeskDep, caller: Submitter) -> Retried:
    """Queue failed and expired jobs again, all or none of them. Jobs that were retried before are skipped."""
    with desk.db.transaction() as session:
        dead = retries.dead(session, Dead(caller.sees_only, **dict(wanted)))
        for row in dead:
            desk.quota.admit(lambda: session, row.owner, caller.max_queued)
        retries.retry(session, dead, max_attempts=desk.settings.max_attempts)
        retried = retries.made_of(session, [row.id for row in dead])
    for row in dead:
        desk.doorbells.ring(row.checkpoint)
    return Retried(jobs=retried)


@router.post("/{job_id}/retry", status_code=202, summary="Retry a job", responses=documented(404, 409, 410))
async def retry(job_id: JobId, desk: DeskDep, caller: Submitter, response: Response) -> Job:
    """Queue a failed, expired or canceled job again, as a new job with the same parameters and seed.

    A job that succeeded can be retried when the storage has lost one of its images or gives it back damaged.
    Idempotent: a second request answers with the same new job.
    """
    doubtful = await desk.rooms.database.run(caller.owner, _doubtful, desk, caller, job_id)
    is_there = await desk.rooms.storage.run(caller.owner, stored_images.all_there, desk, doubtful) if doubtful else True
    job = await desk.rooms.database.run(caller.owner, _retried, desk, caller, job_id, is_lost=not is_there)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job


def _doubtful(desk: Desk, caller: Caller, job_id: UUID) -> Sequence[ImageRow]:
    """Return the images of a job that succeeded and was never retried: it may be retried if the storage has lost one."""
    with desk.db.transaction() as session:
        row = lifecycle.get(session, job_id, owner=caller.sees_only)
        return row.images if row.state == JobState.SUCCEEDED and retries.of(session, row.id) is None else ()


def _retried(desk: Desk, caller: Caller, job_id: UUID, *, is_lost: bool) -> Job:
    with desk.db.transaction() as session:
        row = retries.lock(session, job_id, owner=caller.sees_only, is_lost=is_lost)
        again = retries.of(session, row.id)
        if again is None:
            desk.quota.admit(lambda: session, row.owner, caller.max_queued)
            [again] = retries.retry(session, [row], max_attempts=desk.settings.max_attempts)
        job = Job.of(again)
    desk.doorbells.ring(row.checkpoint)
    return job
