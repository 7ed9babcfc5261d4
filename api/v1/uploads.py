"""Uploads: a client announces a picture, PUTs it to a presigned URL, and jobs name it by its id."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from api.callers import Caller, Submitter
from api.desk import Desk, DeskDep
from api.openapi import documented
from api.routing import Router
from shared.errors import InvalidRequest, UploadNotFound
from shared.infra.storage import upload_key
from shared.infra.tables import UploadRow
from shared.jobs import uploads, wire

router = Router(prefix="/v1/uploads", tags=["uploads"], responses=documented(401, 403, 422, 429, 503))


class UploadRequest(BaseModel):
    """The file to upload."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"size_bytes": 345678}]})

    size_bytes: Annotated[int, Field(strict=True, ge=1, description="Exact size of the file.")]


class Upload(BaseModel):
    """Where to PUT the file. After that, `init_image` and `mask_image` accept the `id` until `expires_at`.

    An absolute `upload_url` is a presigned URL of the storage and needs no API key; a path belongs to this API and needs the key.
    """

    id: UUID
    upload_url: str
    size_bytes: int
    expires_at: datetime


@router.post("", status_code=201, summary="Announce an upload")
def announce(wanted: UploadRequest, desk: DeskDep, caller: Submitter) -> Upload:
    """Announce a picture and get the URL to PUT it to, for example by `curl -T picture.png "$upload_url"`. Kept for a day."""
    most = desk.settings.max_body_bytes
    if wanted.size_bytes > most:
        raise InvalidRequest(f"size_bytes: a picture may have at most {most} bytes.")
    with desk.db.transaction() as session:
        row = uploads.add(session, owner=caller.owner, size_bytes=wanted.size_bytes)
    return Upload(
        id=row.id, upload_url=_url(desk, row), size_bytes=row.size_bytes, expires_at=row.created_at + uploads.KEPT
    )


@router.put(
    "/{upload_id}/content",
    status_code=204,
    summary="Upload a file through this API",
    responses=documented(404, 408, 413),
    openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {}}}}},
)
async def content(upload_id: Annotated[str, Path()], desk: DeskDep, caller: Submitter, request: Request) -> Response:
    """Receive the file of an upload, for clients that cannot reach the storage."""
    data = await request.body()
    await desk.rooms.intake.run(caller.owner, _keep, desk, caller, _id(upload_id), data)
    return Response(status_code=204)


def _keep(desk: Desk, caller: Caller, upload_id: UUID, data: bytes) -> None:
    with desk.db.transaction() as session:
        row = uploads.get(session, upload_id, owner=caller.owner)
    if len(data) != row.size_bytes:
        raise InvalidRequest(f"The file has {len(data)} bytes, but {row.size_bytes} were announced.")
    desk.storage.put(upload_key(row.id), data, content_type="application/octet-stream")


def _url(desk: Desk, row: UploadRow) -> str:
    if desk.settings.image_delivery == "proxy":
        return f"{wire.PREFIX.get()}/v1/uploads/{row.id}/content"
    ttl_s = desk.settings.image_url_seconds
    return desk.storage.upload_url(upload_key(row.id), size_bytes=row.size_bytes, ttl_s=ttl_s)


def _id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise UploadNotFound from None
