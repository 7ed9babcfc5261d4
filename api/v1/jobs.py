"""Submit a job, look at it, list, cancel, and fetch its images."""

from contextlib import suppress
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import AfterValidator, BaseModel
from starlette.concurrency import run_in_threadpool

from api.admission import admit
from api.callers import Caller, Reader, Submitter
from api.deps import Desk, DeskDep, JobId
from api.problems import documented
from api.v1 import cursor as cursors
from api.v1.queue import outlook
from api.v1.submissions import Submission
from api.v1.waits import WaitS
from api.waiting import while_connected
from shared import events, jobs, previews
from shared.db import ImageRow, JobRow
from shared.errors import DatabaseUnavailable, ImageNotFound, ImagesNotReady, JobNotFound, PreviewNotFound
from shared.params import MAX_IMAGES, reject_nul
from shared.states import JobState
from shared.wire import Job

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=documented(401, 403, 422, 429, 503))


# A NUL would reach Postgres, which refuses it as no other character.
Name = Annotated[str, AfterValidator(reject_nul)]


class JobPage(BaseModel):
    """One page of jobs, newest first. `next_cursor` is null on the last page."""

    jobs: list[Job]
    next_cursor: str | None


@router.post("", status_code=202, summary="Submit a job", responses=documented(400, 413))
async def submit(
    submission: Submission, desk: DeskDep, caller: Submitter, wait_s: WaitS, request: Request, response: Response
) -> Job:
    """Queue a job. Once this answers 202 the job is stored and will reach a final state, whatever dies.

    With a wait the answer is held until the job is final or the time is up, and shows the job as it then is.
    """
    row = await run_in_threadpool(admit, desk, caller, submission)
    response.headers["Location"] = f"/v1/jobs/{row.id}"
    return Job.of(await _settled(desk, request, row, wait_s))


@router.get("", summary="List jobs")
def listing(
    desk: DeskDep,
    caller: Reader,
    state: Annotated[JobState | None, Query()] = None,
    checkpoint: Annotated[Name | None, Query(max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=64, description="`next_cursor` of the page before.")] = None,
) -> JobPage:
    """List jobs, newest first."""
    after = cursors.decode(cursor) if cursor else None
    with desk.db.transaction() as session:
        # One more than asked for tells whether there is a next page.
        rows = jobs.listing(
            session, limit=limit + 1, after=after, state=state, checkpoint=checkpoint, owner=caller.sees_only
        )
    page = rows[:limit]
    return JobPage(
        jobs=[Job.of(row) for row in page],
        next_cursor=cursors.encode(page[-1].id) if len(rows) > limit else None,
    )


@router.get("/{job_id}", summary="Show a job", responses=documented(404))
async def show(job_id: JobId, desk: DeskDep, caller: Reader, wait_s: WaitS, request: Request) -> Job:
    """Show one job as it is now, or after a wait, and when it will probably be done."""
    if wait_s:
        row = await _settled(desk, request, await _awaited(desk, caller, job_id), wait_s)
        if JobState(row.state).is_final:
            return Job.of(row)
    return await run_in_threadpool(_shown, desk, caller, job_id)


def _shown(desk: Desk, caller: Caller, job_id: UUID) -> Job:
    with desk.db.transaction() as session:
        row = jobs.get(session, job_id, owner=caller.sees_only)
        return Job.of(row, outlook(session, desk, row))


@router.post("/{job_id}/cancel", summary="Cancel a job", responses=documented(404, 409))
def cancel(job_id: JobId, desk: DeskDep, caller: Submitter) -> Job:
    """Cancel a queued or running job. No success can follow; a running job stops within one denoising step."""
    with desk.db.transaction() as session:
        row = jobs.cancel(session, job_id, owner=caller.sees_only)
    events.publish(desk.redis, events.JobEvent(row.id, JobState(row.state), row.version))
    return Job.of(row)


@router.get(
    "/{job_id}/images/{index}",
    status_code=307,
    summary="Fetch an image",
    response_class=RedirectResponse,
    responses=documented(404, 409),
)
def image(job_id: JobId, index: Annotated[int, Path(ge=0, lt=MAX_IMAGES)], desk: DeskDep, caller: Reader) -> Response:
    """Redirect to a presigned URL of one image's bytes; an api that hides its storage answers with the bytes themselves."""
    found = _image(_row(desk, caller, job_id), index)
    if desk.settings.image_delivery == "proxy":
        headers = {"Cache-Control": "private, max-age=31536000, immutable", "ETag": f'"{found.sha256}"'}
        return Response(desk.storage.get(found.key), media_type=found.content_type, headers=headers)
    url = desk.storage.url(
        found.key,
        ttl_s=desk.settings.image_url_seconds,
        filename=f"{job_id}-{index}.png",
        content_type=found.content_type,
    )
    return RedirectResponse(url, status_code=307, headers={"Cache-Control": "no-store"})


@router.get(
    "/{job_id}/images/{index}/preview",
    summary="Show an image taking shape",
    response_class=Response,
    responses={200: {"content": {previews.JPEG: {}}}, **documented(404)},
)
def preview(job_id: JobId, index: Annotated[int, Path(ge=0, lt=MAX_IMAGES)], desk: DeskDep, caller: Reader) -> Response:
    """Return the latest live preview of a running job's image: small, rough, and gone soon after the job has ended."""
    _row(desk, caller, job_id)
    data = previews.get(desk.redis, job_id, index)
    if data is None:
        raise PreviewNotFound(f"Job {job_id} shows no preview of image {index} now.")
    return Response(data, media_type=previews.JPEG, headers={"Cache-Control": "no-store"})


async def _awaited(desk: Desk, caller: Caller, job_id: UUID) -> JobRow:
    """Return the row that a wait begins with; a crowd's are read together."""
    row = await desk.waiting.row(job_id)
    if row is None or caller.sees_only not in {None, row.owner}:
        raise JobNotFound(f"No job has ever had the id {job_id}.")
    return row


async def _settled(desk: Desk, request: Request, row: JobRow, wait_s: float) -> JobRow:
    """Wait for a job to end while its client does; the row as it then is, or as it was if the database is away."""
    if not wait_s or JobState(row.state).is_final:
        return row
    with suppress(DatabaseUnavailable):
        return await while_connected(request, lambda: desk.waiting.final(row.id, wait_s)) or row
    return row


def _row(desk: Desk, caller: Caller, job_id: UUID) -> JobRow:
    with desk.db.transaction() as session:
        return jobs.get(session, job_id, owner=caller.sees_only)


def _image(row: JobRow, index: int) -> ImageRow:
    if row.state != JobState.SUCCEEDED:
        raise ImagesNotReady(f"Job {row.id} is {row.state}; images appear when it has succeeded.")
    for found in row.images:
        if found.index == index:
            return found
    raise ImageNotFound(f"Job {row.id} has {len(row.images)} images; there is no index {index}.")
