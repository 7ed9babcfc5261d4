"""Pagination cursors, opaque to clients: a row id, a position in the list of jobs, or a position in the event feed."""

import base64
import binascii
import struct
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from api.jobs.queries import ListPosition
from shared.errors import BadCursor
from shared.infra.tables import JobRow
from shared.jobs.outbox import Position


def encode(row_id: UUID) -> str:
    """Return the cursor of the page after this row."""
    return _text(row_id.bytes)


def decode(cursor: str) -> UUID:
    """Return the id of the row before the page. Raises `BadCursor`."""
    return UUID(bytes=_fields(_ID, cursor)[0])


def encode_job(row: JobRow) -> str:
    """Return the cursor of the page after this job."""
    return _text(_JOB.pack(_micros(row.created_at), row.id.bytes))


def decode_job(cursor: str) -> ListPosition:
    """Return the list position before the page. Raises `BadCursor`."""
    micros, job_id = _fields(_JOB, cursor)
    try:
        return ListPosition(_EPOCH + timedelta(microseconds=micros), UUID(bytes=job_id))
    except OverflowError as error:
        raise BadCursor from error


def encode_position(position: Position) -> str:
    """Return the cursor of the events after this position."""
    return _text(_POSITION.pack(position.txid, position.id))


def decode_position(cursor: str) -> Position:
    """Return the feed position before the page. Raises `BadCursor`."""
    return Position(*_fields(_POSITION, cursor))


_ID = struct.Struct(">16s")
_JOB = struct.Struct(">q16s")
_POSITION = struct.Struct(">qq")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _micros(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _fields(layout: struct.Struct, cursor: str) -> tuple[Any, ...]:
    try:
        return layout.unpack(base64.b64decode(cursor + "==", altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, struct.error) as error:
        raise BadCursor from error
