"""Images of a job: the finished image, its thumbnail and the live preview."""

from collections.abc import Iterator
from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import Path, Query, Request, Response
from fastapi.responses import RedirectResponse

from api import stored_images
from api.annex.thumbnails import THUMBNAIL_PX
from api.callers import Caller, Reader
from api.desk import Desk, DeskDep, JobId
from api.gate.methods import is_head
from api.large_answers import LargeAnswer
from api.openapi import documented
from api.routing import Router
from shared.errors import ImageNotFound, ImagesNotReady
from shared.infra import previews
from shared.infra.tables import ImageRow, JobRow
from shared.jobs import lifecycle
from shared.vocabulary.params import MAX_IMAGES
from shared.vocabulary.states import JobState

# An image's bytes never change under its address.
_FOREVER = "private, max-age=31536000, immutable"

router = Router(
    prefix="/v1/jobs/{job_id}/images/{index}", tags=["jobs"], responses=documented(401, 403, 404, 410, 422, 429, 503)
)

Index = Annotated[int, Path(ge=0, lt=MAX_IMAGES, description="Index of the image, from 0.")]


@router.get(
    "",
    status_code=307,
    summary="Fetch an image",
    response_class=RedirectResponse,
    responses={200: {"content": {"image/png": {}}, "description": "The image itself"}, **documented(409)},
)
async def image(
    job_id: JobId,
    index: Index,
    desk: DeskDep,
    caller: Reader,
    request: Request,
    inline: Annotated[bool, Query(description="Answer with the bytes instead of a redirect.")] = False,
) -> Response:
    """Redirect to a presigned URL of an image. With `FARM_IMAGE_DELIVERY=proxy` the answer is the image itself."""
    row = await desk.rooms.database.run(caller.owner, _image, desk, caller, job_id, index)
    if inline or desk.settings.image_delivery == "proxy":
        pieces = map(partial(stored_images.fetch, desk), [row])
        return _lasting(pieces, row.content_type, f'"{row.sha256}"', needs_bytes=row.size_bytes)
    url = desk.storage.url(
        row.key,
        ttl_s=desk.settings.image_url_seconds,
        filename=f"{job_id}-{index}.png",
        content_type=row.content_type,
        head=is_head(request.scope),
    )
    return RedirectResponse(url, status_code=307, headers={"Cache-Control": "no-store"})


@router.get(
    "/thumbnail",
    summary="Fetch a thumbnail",
    response_class=Response,
    responses={200: {"content": {"image/webp": {}}}, **documented(409)},
)
async def thumbnail(job_id: JobId, index: Index, desk: DeskDep, caller: Reader) -> Response:
    """Return a WebP of an image with sides of at most 320 px."""
    row = await desk.rooms.database.run(caller.owner, _image, desk, caller, job_id, index)
    needs_bytes = row.size_bytes + 3 * row.width * row.height
    etag = f'"{row.sha256}-{THUMBNAIL_PX}"'
    return _lasting(map(partial(_thumbnail, desk), [row]), "image/webp", etag, needs_bytes=needs_bytes)


@router.get(
    "/preview",
    summary="Fetch the live preview",
    response_class=Response,
    responses={200: {"content": {previews.JPEG: {}}}, 204: {"description": "No preview yet, or no longer"}},
)
async def preview(job_id: JobId, index: Index, desk: DeskDep, caller: Reader) -> Response:
    """Return the latest live preview of a running job's image: small, rough, and deleted soon after the job ends.

    204 before the first preview and after the last: not an error, since a client that polls asks once too often.
    """
    row = await desk.rooms.database.run(caller.owner, _row, desk, caller, job_id)
    data = await desk.rooms.redis.run(caller.owner, previews.get, desk.redis, row.id, index)
    if data is None:
        return Response(status_code=204)
    return Response(data, media_type=previews.JPEG, headers={"Cache-Control": "no-store"})


def _thumbnail(desk: Desk, row: ImageRow) -> bytes:
    with desk.intake.decoding():
        return stored_images.thumbnail(desk, row)


def _lasting(made: Iterator[bytes], content_type: str, etag: str, *, needs_bytes: int) -> Response:
    headers = {"Cache-Control": _FOREVER, "ETag": etag}
    return LargeAnswer(made, needs_bytes=needs_bytes, media_type=content_type, headers=headers, single=True)


def _image(desk: Desk, caller: Caller, job_id: UUID, index: int) -> ImageRow:
    row = _row(desk, caller, job_id)
    if row.state != JobState.SUCCEEDED:
        raise ImagesNotReady(f"Job {row.shown_id} is {row.state}; images appear when it has succeeded.")
    for found in row.images:
        if found.index == index:
            return found
    raise ImageNotFound(f"Job {row.shown_id} has {len(row.images)} images; there is no index {index}.")


def _row(desk: Desk, caller: Caller, job_id: UUID) -> JobRow:
    with desk.db.transaction() as session:
        return lifecycle.get(session, job_id, owner=caller.sees_only)
