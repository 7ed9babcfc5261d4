"""Cursors of listings: opaque to clients, a job id inside."""

import base64
import binascii
from uuid import UUID

from shared.errors import BadCursor


def encode(job_id: UUID) -> str:
    """Return the cursor of the page that follows this job."""
    return base64.urlsafe_b64encode(job_id.bytes).rstrip(b"=").decode()


def decode(cursor: str) -> UUID:
    """Return the job that a cursor follows, or raise `BadCursor`."""
    try:
        return UUID(bytes=base64.b64decode(cursor + "==", altchars=b"-_", validate=True))
    except (ValueError, binascii.Error) as error:
        raise BadCursor from error
