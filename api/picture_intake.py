"""How pictures come in: as base64, or from a URL that the api fetches. Bounded, because both cost what others need.

A picture of the largest size takes 0.15 GB while it is decoded; a slow URL holds a thread of the api.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore

from shared.errors import InvalidRequest, TooBusy
from shared.files import pictures
from shared.infra.outbound_http import OutboundHttp

FETCHES = 8  # of the api's 40 threads
DECODES = 4  # 0.6 GB at worst
_FETCH_PATIENCE_S = 1.0
_DECODE_PATIENCE_S = 30.0


class PictureIntake:
    """The one place of a process where clients' pictures are fetched and decoded."""

    def __init__(self, outside: OutboundHttp, *, max_bytes: int, fetch_s: float) -> None:
        self._outside = outside
        self._max_bytes = max_bytes
        self._fetch_s = fetch_s
        self._fetches = BoundedSemaphore(FETCHES)
        self._decodes = BoundedSemaphore(DECODES)

    def file(self, text: str, what: str) -> bytes:
        """Return the file that a field holds or names. Raises `InvalidRequest` naming the field `what`, `TooBusy`."""
        if not text[:8].lower().startswith(("http://", "https://")):
            return pictures.from_base64(text, what)
        with _turn(self._fetches, _FETCH_PATIENCE_S, "fetches"):
            try:
                return self._outside.fetch(text, max_bytes=self._max_bytes, deadline_s=self._fetch_s)
            except InvalidRequest as error:
                raise type(error)(f"{what}: {error}") from error

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Hold one of the few places in which a picture may be decoded. Raises `TooBusy`."""
        with _turn(self._decodes, _DECODE_PATIENCE_S, "decodes"):
            yield


@contextmanager
def _turn(places: BoundedSemaphore, patience_s: float, verb: str) -> Iterator[None]:
    if not places.acquire(timeout=patience_s):
        raise TooBusy(f"The api {verb} as many pictures as it can at once; send the job again in a moment.")
    try:
        yield
    finally:
        places.release()
