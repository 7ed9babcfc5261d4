"""Uploads: pictures that clients PUT straight to the storage and may use in jobs for a day (the `uploads` table).

The raw file lies under `uploads/`; submitting a job that uses it stores a checked copy under `inputs/`.
"""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.orm import Session

from shared.errors import TooManyUploads, UploadNotFound
from shared.infra.tables import UploadRow

KEPT = timedelta(days=1)
MAX_KEPT = 500  # of one owner
FORGOTTEN_AT_ONCE = 500


def add(session: Session, *, owner: str, size_bytes: int) -> UploadRow:
    """Announce an upload of `size_bytes`. Raises `TooManyUploads`."""
    mine = select(func.count()).select_from(UploadRow).where(UploadRow.owner == owner)
    if (session.scalar(mine) or 0) >= MAX_KEPT:
        raise TooManyUploads(f"This API key has reached its limit of {MAX_KEPT} uploads; each expires after a day.")
    row = UploadRow(id=uuid4(), owner=owner, size_bytes=size_bytes)
    session.add(row)
    session.flush()
    session.refresh(row)
    return row


def get(session: Session, upload_id: UUID, *, owner: str) -> UploadRow:
    """Return an upload. Raises `UploadNotFound`, also for another owner's or an expired one."""
    mine = select(UploadRow).where(UploadRow.id == upload_id, UploadRow.owner == owner, ~_is_expired())
    row = session.scalars(mine).one_or_none()
    if row is None:
        raise UploadNotFound(f"There is no upload {upload_id}, or it is older than a day.")
    return row


def expired(session: Session) -> Sequence[UUID]:
    """Return expired uploads, the oldest first, at most `FORGOTTEN_AT_ONCE`."""
    old = select(UploadRow.id).where(_is_expired()).order_by(UploadRow.created_at).limit(FORGOTTEN_AT_ONCE)
    return session.scalars(old).all()


def forget(session: Session, upload_ids: Sequence[UUID]) -> None:
    """Delete the rows of uploads whose files are deleted."""
    session.execute(delete(UploadRow).where(UploadRow.id.in_(upload_ids)))


def _is_expired() -> ColumnElement[bool]:
    return UploadRow.created_at < func.now() - KEPT
