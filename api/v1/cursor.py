"""Cursors of listings: opaque to clients, an id inside, or a position in the feed of events."""

import base64
import binascii
import struct
from uuid import UUID

from shared.errors import BadCursor
from shared.outbox import Position


def encode(job_id: UUID) -> str:
    """Return the cursor of the page that follows this job."""
    return base64.urlsafe_b64encode(job_id.bytes).rstrip(b"=").decode()


def decode(cursor: str) -> UUID:
    """Return the job that a cursor follows, or raise `BadCursor`."""
    try:
        return UUID(bytes=base64.b64decode(cursor + "==", altchars=b"-_", validate=True))
    except (ValueError, binascii.Error) as error:
        raise BadCursor from error


def encode_position(position: Position) -> str:
    """Return the cursor of what follows a position in the feed."""
    return base64.urlsafe_b64encode(_POSITION.pack(position.txid, position.id)).rstrip(b"=").decode()


def decode_position(cursor: str) -> Position:
    """Return the position that a cursor follows, or raise `BadCursor`."""
    try:
        return Position(*_POSITION.unpack(base64.b64decode(cursor + "==", altchars=b"-_", validate=True)))
    except (ValueError, binascii.Error, struct.error) as error:
        raise BadCursor from error


_POSITION = struct.Struct(">qq")
