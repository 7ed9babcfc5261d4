"""Input pictures: base64, or fetched from a URL. Bounds how many are decoded at once.

Decoding a picture of the largest size takes 0.15 GB.
"""

from contextlib import AbstractContextManager

from api.limits.workrooms import Workroom
from shared.errors import InvalidRequest
from shared.files import pictures
from shared.infra.outbound_http import OutboundHttp


class PictureIntake:
    """Fetches and decodes clients' pictures. Its functions run on threads of rooms."""

    def __init__(self, outside: OutboundHttp, room: Workroom, *, max_bytes: int, fetch_s: float) -> None:
        self._outside = outside
        self._room = room
        self._max_bytes = max_bytes
        self._fetch_s = fetch_s

    def file(self, text: str, what: str) -> bytes:
        """Return the bytes of a base64 text or of a URL. Raises `InvalidRequest`, which names the field `what`."""
        if is_base64(text):
            return pictures.from_base64(text, what)
        try:
            return self._outside.fetch(text, max_bytes=self._max_bytes, deadline_s=self._fetch_s)
        except InvalidRequest as error:
            raise type(error)(f"{what}: {error}") from error

    def decoding(self) -> AbstractContextManager[None]:
        """Hold a place for decoding. Raises `TooBusy` where none becomes free."""
        return self._room.place()


def is_base64(text: str) -> bool:
    """Whether a picture came as text; else it is to be fetched."""
    return not text[:8].lower().startswith(("http://", "https://"))
