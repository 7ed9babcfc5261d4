"""Batches: submit many jobs at once, show and cancel them together, fetch their images as a contact sheet or a zip."""

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import product
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Path, Query, Response
from pydantic import BaseModel

from api import stored_images
from api.admission import inputs
from api.admission.admit import admit_batch
from api.admission.sent import SentDep
from api.admission.sweeps import MAX_JOBS, BatchSubmission
from api.annex import contact_sheet
from api.annex.acts import FETCHED_AT_ONCE
from api.annex.contact_sheet import Edges
from api.callers import Caller, Reader, Submitter
from api.desk import Desk, DeskDep
from api.large_answers import LargeAnswer
from api.openapi import documented
from api.routing import Router
from api.v1 import cursors, zip_stream
from api.v1.jobs import ClientsKey
from shared.errors import BatchNotFound, ImagesNotReady
from shared.infra.events import JobEvent
from shared.infra.tables import BatchRow, ImageRow, JobRow
from shared.jobs import batches, lifecycle
from shared.jobs.wire import Batch, Job
from shared.vocabulary.states import JobState

ON_A_SHEET = 256
SIDE_BY_SIDE = 8

router = Router(prefix="/v1/batches", tags=["batches"], responses=documented(401, 403, 422, 429, 503))


async def _batch_id(
    batch_id: Annotated[str, Path(description="The batch's id.", examples=["0198c0de-0000-7000-8000-000000000001"])],
) -> UUID:
    try:
        return UUID(batch_id)
    except ValueError:
        raise BatchNotFound(f"There is no batch {batch_id[:64]!r}.") from None


BatchId = Annotated[UUID, Depends(_batch_id)]


class BatchPage(BaseModel):
    """One page of batches, newest first. `next_cursor` is null on the last page."""

    batches: list[Batch]
    next_cursor: str | None


class BatchJobs(BaseModel):
    """Jobs of a batch, in the order of submission. `next_start` is null on the last page."""

    jobs: list[Job]
    next_start: int | None


@router.post("", status_code=202, summary="Submit a batch", responses=documented(400, 404, 409, 410, 413))
async def submit(
    wanted: BatchSubmission,
    sent: SentDep,
    desk: DeskDep,
    caller: Submitter,
    response: Response,
    idempotency_key: ClientsKey = None,
) -> Batch:
    """Queue up to 1,000 jobs, all or none: a list of jobs, or a sweep. Each reaches a final state, even if machines fail.

    A repeated request with the same `Idempotency-Key` and JSON, within 48 hours, answers with the same batch.
    """
    room = inputs.room(desk, *wanted.submissions)
    row = await room.run(caller.owner, admit_batch, desk, caller, wanted, sent, key=idempotency_key)
    response.headers["Location"] = f"/v1/batches/{row.id}"
    return await desk.rooms.database.run(caller.owner, _shown, desk, caller, row.id)


@router.get("", summary="List batches")
def listing(
    desk: DeskDep,
    caller: Reader,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=64, description="`next_cursor` of the previous page.")] = None,
) -> BatchPage:
    """List batches, newest first."""
    after = cursors.decode(cursor) if cursor else None
    with desk.db.transaction() as session:
        # One more than asked for tells whether there is a next page.
        rows = batches.listing(session, owner=caller.sees_only, limit=limit + 1, after=after)
        page = rows[:limit]
        tallies = batches.tallies(session, [row.id for row in page])
    return BatchPage(
        batches=[Batch.of(row, tallies[row.id]) for row in page],
        next_cursor=cursors.encode(page[-1].id) if len(rows) > limit else None,
    )


@router.get("/{batch_id}", summary="Show a batch", responses=documented(404))
def show(batch_id: BatchId, desk: DeskDep, caller: Reader) -> Batch:
    """Show a batch: its state, and how many of its jobs are in each state."""
    return _shown(desk, caller, batch_id)


@router.get("/{batch_id}/jobs", summary="List the jobs of a batch", responses=documented(404))
def listed(
    batch_id: BatchId,
    desk: DeskDep,
    caller: Reader,
    start: Annotated[int, Query(ge=0, le=MAX_JOBS, description="Index of the first job, from 0.")] = 0,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> BatchJobs:
    """List the jobs of a batch, in the order of submission."""
    with desk.db.transaction() as session:
        batches.get(session, batch_id, owner=caller.sees_only)
        rows = batches.jobs(session, batch_id, start=start, limit=limit + 1)
    following = rows[limit].batch_index if len(rows) > limit else None
    return BatchJobs(jobs=[Job.of(row) for row in rows[:limit]], next_start=following)


@router.post("/{batch_id}/cancel", summary="Cancel a batch", responses=documented(404))
async def cancel(batch_id: BatchId, desk: DeskDep, caller: Submitter) -> Batch:
    """Cancel all unfinished jobs; running ones stop within one denoising step. Idempotent."""
    canceled, shown = await desk.rooms.database.run(caller.owner, _canceled, desk, caller, batch_id)
    if canceled:
        await desk.tell(caller.owner, *(JobEvent(job_id, JobState.CANCELED, at) for job_id, at in canceled.items()))
    return shown


@router.get(
    "/{batch_id}/sheet",
    summary="Fetch a contact sheet",
    response_class=Response,
    responses={200: {"content": {contact_sheet.WEBP: {}}}, **documented(404)},
)
async def sheet(
    batch_id: BatchId,
    desk: DeskDep,
    caller: Reader,
    start: Annotated[int, Query(ge=0, le=MAX_JOBS, description="Index of the first job on the sheet, from 0.")] = 0,
) -> Response:
    """Draw the first image of up to 256 jobs as one WebP; a sweep has its values along the edges.

    Where there is no image, or it comes back damaged from the storage, a word says so.
    """
    batch, rows = await desk.rooms.database.run(
        caller.owner, _with_jobs, desk, caller, batch_id, start=start, limit=ON_A_SHEET
    )
    at_place = {row.batch_index: row for row in rows}
    # A deleted job leaves its place empty, or all that follow would stand under others' labels.
    places = [at_place.get(place) for place in range(start, min(batch.total, start + ON_A_SHEET))]
    columns, edges = layout(batch, start, len(places))
    px = contact_sheet.tile_px(columns, -(-len(places) // columns))
    shown = [row.images[0] for row in rows if row.images]
    # The tiles and the sheet, and the pictures that are shrunk meanwhile.
    needs_bytes = 2 * 3 * px * px * len(places) + FETCHED_AT_ONCE * max(map(_shrunk_bytes, shown), default=0)
    drawn = map(partial(_drawn, desk, places, edges), [columns])
    headers = {"Cache-Control": "no-store"}
    return LargeAnswer(drawn, needs_bytes=needs_bytes, media_type=contact_sheet.WEBP, headers=headers, single=True)


@router.get(
    "/{batch_id}/images.zip",
    summary="Fetch all images as a zip",
    response_class=Response,
    responses={200: {"content": {zip_stream.ZIP: {}}}, **documented(404, 409)},
)
async def images(batch_id: BatchId, desk: DeskDep, caller: Reader) -> Response:
    """Send all finished images as one zip, with `jobs.json`. File names begin with the job's index in the batch.

    Jobs that are deleted during the download are left out. Instead of an image that the storage has lost or gives back damaged
    there is a text file of its name that says so.
    """
    batch, rows = await desk.rooms.database.run(caller.owner, _with_jobs, desk, caller, batch_id)
    if not any(row.images for row in rows):
        raise ImagesNotReady(f"No job of batch {batch.id} has succeeded yet.")
    pieces = zip_stream.zipped(_files(desk, rows), at=datetime.now(UTC))
    needs_bytes = zip_stream.COPIES * max(image.size_bytes for row in rows for image in row.images)
    named = {"Content-Disposition": f'attachment; filename="{batch.id}.zip"', "Cache-Control": "no-store"}
    return LargeAnswer(pieces, needs_bytes=needs_bytes, media_type=zip_stream.ZIP, headers=named)


def layout(batch: BatchRow, start: int, count: int) -> tuple[int, Edges]:
    """Return a sheet's columns and edge labels: the last axis of a grid across, the others down.

    A few values of one axis stand side by side, more of them below each other; a list of jobs is a square.
    """
    names = [axis["parameter"] for axis in batch.axes]
    values = [[f"{name} {value}" for value in axis["values"]] for name, axis in zip(names, batch.axes, strict=True)]
    across = len(values[-1]) if values else 0
    is_grid = len(values) > 1 and batch.total == math.prod(map(len, values))
    if is_grid and across <= ON_A_SHEET and start % across == 0:
        down = [", ".join(cell) for cell in product(*values[:-1])][start // across :]
        return across, Edges(values[-1], down)
    if values and not is_grid:
        cells = [", ".join(cell) for cell in zip(*values, strict=True)][start : start + count]
        return (count, Edges(cells, ())) if 0 < count <= SIDE_BY_SIDE else (1, Edges((), cells))
    columns = next(side for side in range(1, ON_A_SHEET + 1) if side * side >= count)
    return columns, Edges((), ())


def _canceled(desk: Desk, caller: Caller, batch_id: UUID) -> tuple[Mapping[UUID, int], Batch]:
    with desk.db.transaction() as session:
        batches.get(session, batch_id, owner=caller.sees_only)
        canceled = lifecycle.cancel_batch(session, batch_id)
    return canceled, _shown(desk, caller, batch_id)


def _with_jobs(desk: Desk, caller: Caller, batch_id: UUID, **which: int) -> tuple[BatchRow, Sequence[JobRow]]:
    with desk.db.transaction() as session:
        return batches.get(session, batch_id, owner=caller.sees_only), batches.jobs(session, batch_id, **which)


def _drawn(desk: Desk, rows: Sequence[JobRow | None], edges: Edges, columns: int) -> bytes:
    places = [_place(row) for row in rows]
    with desk.intake.decoding():
        made = desk.annex.do("draw_sheet", places=places, columns=columns, edges=[edges.columns, edges.rows])
    removed = stored_images.missed(desk, rows, **made.about)
    if not removed:
        return made.data
    return _drawn(desk, [None if index in removed else row for index, row in enumerate(rows)], edges, columns)


def _shrunk_bytes(image: ImageRow) -> int:
    """Return the memory that shrinking an image takes: its file and its pixels."""
    return image.size_bytes + 3 * image.width * image.height


def _place(row: JobRow | None) -> tuple[str, str] | str:
    """Return where the first image of a job lies, and its digest; or a word that says why there is none."""
    if row is None:
        return "removed"
    return (row.images[0].key, row.images[0].sha256) if row.images else row.state


def _files(desk: Desk, rows: Sequence[JobRow]) -> Iterator[zip_stream.File]:
    for row in rows:
        for image in row.images:
            yield f"{row.batch_index:04}-{image.index}-{image.seed}.png", partial(stored_images.fetch, desk, image)
    listed = BatchJobs(jobs=[Job.of(row) for row in rows], next_start=None)
    yield "jobs.json", lambda: listed.model_dump_json(indent=1, include={"jobs"}).encode()


def _shown(desk: Desk, caller: Caller, batch_id: UUID) -> Batch:
    with desk.db.transaction() as session:
        row = batches.get(session, batch_id, owner=caller.sees_only)
        return Batch.of(row, batches.tallies(session, [batch_id])[batch_id])
