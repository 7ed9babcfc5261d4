"""Inputs of a job: the init image and the mask that it started from."""

from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import Path, Response

from api import stored_images
from api.callers import Caller, Reader
from api.desk import Desk, DeskDep, JobId
from api.large_answers import LargeAnswer
from api.openapi import documented
from api.routing import Router
from api.stored_images import InputField
from shared.infra.storage import input_digest
from shared.infra.tables import JobRow
from shared.jobs import lifecycle

# A job's inputs never change; the header says no more than the browser's own cache may keep them.
_FOREVER = "private, max-age=31536000, immutable"

router = Router(prefix="/v1/jobs/{job_id}/inputs", tags=["jobs"], responses=documented(401, 403, 422, 429, 503))


@router.get(
    "/{field}",
    summary="Fetch an input of a job",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}, **documented(404, 410)},
)
async def picture(
    job_id: JobId,
    field: Annotated[InputField, Path(description="The field of the job that named the picture.")],
    desk: DeskDep,
    caller: Reader,
) -> Response:
    """Return the init image or mask of a job as PNG, as it is stored: in the size in which it came, without metadata.

    The path itself may be sent as `init_image` or `mask_image` of another job, instead of the picture.
    """
    job = await desk.rooms.database.run(caller.owner, _row, desk, caller, job_id)
    needs_bytes = await desk.rooms.storage.run(caller.owner, stored_images.input_bytes, desk, job, field)
    pieces = map(partial(stored_images.fetch_input, desk, job), [field])
    headers = {"Cache-Control": _FOREVER, "ETag": f'"{input_digest(stored_images.input_key(job, field))}"'}
    return LargeAnswer(pieces, needs_bytes=needs_bytes, media_type="image/png", headers=headers, single=True)


def _row(desk: Desk, caller: Caller, job_id: UUID) -> JobRow:
    with desk.db.transaction() as session:
        return lifecycle.get(session, job_id, owner=caller.sees_only)
