"""Submit, show, list and cancel jobs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Annotated
from uuid import UUID

from fastapi import Header, Query, Request, Response
from pydantic import AfterValidator, BaseModel
from starlette.requests import ClientDisconnect

from api.admission.admit import admit, submits_of
from api.admission.sent import SentDep
from api.admission.submissions import Submission
from api.callers import Caller, Reader, Submitter
from api.desk import Desk, DeskDep, JobId
from api.jobs import queries
from api.json_bodies import Held
from api.openapi import documented
from api.routing import Router
from api.v1 import cursors
from api.v1.long_poll import WaitS
from api.v1.queue import outlook
from api.waiting.disconnect import while_connected
from shared.errors import DatabaseUnavailable
from shared.infra import events
from shared.infra.tables import JobRow
from shared.jobs import lifecycle
from shared.jobs.wire import Job
from shared.vocabulary.params import reject_nul
from shared.vocabulary.states import JobState

router = Router(prefix="/v1/jobs", tags=["jobs"], responses=documented(401, 403, 422, 429, 503))

MAX_SEARCH_CHARS = 200

# A NUL would reach Postgres, which refuses it as no other character.
Name = Annotated[str, AfterValidator(reject_nul)]


ClientsKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="A key of your own, such as a UUID. Repeating a submission under the same key makes no second job.",
    ),
]


class JobPage(BaseModel):
    """One page of jobs, newest first. `next_cursor` is null on the last page."""

    jobs: list[Job]
    next_cursor: str | None


@router.post(
    "",
    status_code=202,
    summary="Submit a job",
    response_model=Job,
    responses=documented(400, 404, 409, 410, 413),
)
async def submit(
    submission: Submission,
    sent: SentDep,
    desk: DeskDep,
    caller: Submitter,
    wait_s: WaitS,
    request: Request,
    response: Response,
    idempotency_key: ClientsKey = None,
) -> Job | Response:
    """Queue a job. A job that was answered 202 is stored and reaches a final state, even if processes or machines fail.

    A repeated request with the same `Idempotency-Key` and JSON, within 48 hours, answers with the same job.

    With `wait` the answer is held until the job is final or the time is up, and shows the job as it is then.
    """
    row = await admit(submits_of(request), desk, caller, submission, sent, called=idempotency_key)
    response.headers["Location"] = f"/v1/jobs/{row.shown_id}"
    return _accepted(desk, row, wait_s, response)


@router.put(
    "/{job_id}",
    status_code=202,
    summary="Submit a job under an id",
    response_model=Job,
    responses=documented(400, 404, 409, 410, 413),
)
async def put(
    job_id: JobId,
    submission: Submission,
    sent: SentDep,
    desk: DeskDep,
    caller: Submitter,
    wait_s: WaitS,
    request: Request,
    response: Response,
) -> Job | Response:
    """Queue a job under an id that you choose, any UUID. A repeated request with the same JSON answers with the same job."""
    row = await admit(submits_of(request), desk, caller, submission, sent, called=job_id)
    response.headers["Location"] = f"/v1/jobs/{row.shown_id}"
    return _accepted(desk, row, wait_s, response)


@router.get("", summary="List jobs")
def listing(
    desk: DeskDep,
    caller: Reader,
    state: Annotated[JobState | None, Query()] = None,
    checkpoint: Annotated[Name | None, Query(max_length=100)] = None,
    prompt: Annotated[
        Name | None, Query(max_length=MAX_SEARCH_CHARS, description="Text that the prompt contains, ignoring case.")
    ] = None,
    error_code: Annotated[
        Name | None, Query(max_length=100, description="Only jobs that failed with this code.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=64, description="`next_cursor` of the previous page.")] = None,
) -> JobPage:
    """List jobs, newest first."""
    after = cursors.decode_job(cursor) if cursor else None
    with _charged(desk, caller) if prompt else nullcontext(), desk.db.transaction() as session:
        # One more than asked for tells whether there is a next page.
        rows = queries.listing(
            session,
            limit=limit + 1,
            after=after,
            state=state,
            checkpoint=checkpoint,
            prompt=prompt,
            error_code=error_code,
            owner=caller.sees_only,
        )
    page = rows[:limit]
    return JobPage(
        jobs=[Job.of(row) for row in page],
        next_cursor=cursors.encode_job(page[-1]) if len(rows) > limit else None,
    )


@contextmanager
def _charged(desk: Desk, caller: Caller) -> Iterator[None]:
    """Charge the block to the caller: a search keeps the database's processors busy for as long as it takes."""
    began_s = time.monotonic()
    try:
        yield
    finally:
        desk.throttle.spend(caller.owner, time.monotonic() - began_s)


@router.get("/{job_id}", summary="Show a job", responses=documented(404, 410))
async def show(job_id: JobId, desk: DeskDep, caller: Reader, wait_s: WaitS, request: Request) -> Job:
    """Show one job and, while it is unfinished, an estimate of its start and end. With `wait` the answer is held."""
    if wait_s:
        row = await _wait_for_end(desk, request, await visible_row(desk, caller, job_id), wait_s)
        if JobState(row.state).is_final:
            return Job.of(row)
    return await desk.rooms.database.run(caller.owner, _shown, desk, caller, job_id)


def _shown(desk: Desk, caller: Caller, job_id: UUID) -> Job:
    with desk.db.transaction() as session:
        row = lifecycle.get(session, job_id, owner=caller.sees_only)
        return Job.of(row, outlook(session, desk, row))


@router.post("/{job_id}/cancel", summary="Cancel a job", responses=documented(404, 409, 410))
async def cancel(job_id: JobId, desk: DeskDep, caller: Submitter) -> Job:
    """Cancel a queued or running job. A running job stops within one denoising step and never succeeds afterwards."""
    row = await desk.rooms.database.run(caller.owner, _canceled, desk, caller, job_id)
    await desk.tell(caller.owner, events.JobEvent(row.id, JobState(row.state), row.version))
    return Job.of(row)


def _canceled(desk: Desk, caller: Caller, job_id: UUID) -> JobRow:
    with desk.db.transaction() as session:
        return lifecycle.cancel(session, job_id, owner=caller.sees_only)


async def visible_row(desk: Desk, caller: Caller, job_id: UUID) -> JobRow:
    """Return the row of a job that the caller may see; concurrent reads are coalesced. Raises `JobNotFound`, `Gone`."""
    row = await desk.updates.row(job_id)
    if row is None or caller.sees_only not in {None, row.owner}:
        return await desk.rooms.database.run(caller.owner, _row, desk, caller, job_id)  # which tells why there is none
    return row


def _row(desk: Desk, caller: Caller, job_id: UUID) -> JobRow:
    with desk.db.transaction() as session:
        return lifecycle.get(session, job_id, owner=caller.sees_only)


def _accepted(desk: Desk, row: JobRow, wait_s: float, response: Response) -> Job | Held:
    """Show an accepted job: at once, or held until its end while its body is gone."""
    if not wait_s:
        return Job.of(row)

    async def ended(request: Request) -> Response:
        shown = Job.of(await _wait_for_end(desk, request, row, wait_s)).model_dump_json(by_alias=True)
        return Response(shown, status_code=202, headers=response.headers, media_type="application/json")

    return Held(ended)


async def _wait_for_end(desk: Desk, request: Request, row: JobRow, wait_s: float) -> JobRow:
    """Long poll: return the row once the job is final, or as it is after `wait_s`, or `row` if the database is away.

    Raises `ClientDisconnect`: when a crowd leaves at once, nothing should be looked up for any of it.
    """
    if not wait_s or JobState(row.state).is_final:
        return row
    with suppress(DatabaseUnavailable):
        latest = await while_connected(request, lambda: desk.updates.wait_until_final(row.id, wait_s))
        if latest is None and await request.is_disconnected():
            raise ClientDisconnect
        return latest or row
    return row
