"""Input pictures: base64, or fetched from a URL. Bounds how many are fetched and decoded at once.

Decoding a picture of the largest size takes 0.15 GB; a slow URL holds a thread of the api.
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
    """Fetches and decodes clients' pictures, a bounded number at a time per process."""

    def __init__(self, outside: OutboundHttp, *, max_bytes: int, fetch_s: float) -> None:
        self._outside = outside
        self._max_bytes = max_bytes
        self._fetch_s = fetch_s
        self._fetches = BoundedSemaphore(FETCHES)
        self._decodes = BoundedSemaphore(DECODES)

    def file(self, text: str, what: str) -> bytes:
        """Return the bytes of a base64 text or of a URL. Raises `InvalidRequest`, which names the field `what`, and `TooBusy`."""
        if not text[:8].lower().startswith(("http://", "https://")):
            return pictures.from_base64(text, what)
        with _permit(self._fetches, _FETCH_PATIENCE_S, "fetches"):
            try:
                return self._outside.fetch(text, max_bytes=self._max_bytes, deadline_s=self._fetch_s)
            except InvalidRequest as error:
                raise type(error)(f"{what}: {error}") from error

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Hold a decoding permit. Waits up to 30 s for one, then raises `TooBusy`."""
        with _permit(self._decodes, _DECODE_PATIENCE_S, "decodes"):
            yield


@contextmanager
def _permit(permits: BoundedSemaphore, patience_s: float, verb: str) -> Iterator[None]:
    if not permits.acquire(timeout=patience_s):
        raise TooBusy(f"The api {verb} as many pictures as it can at once; retry in a moment.")
    try:
        yield
    finally:
        permits.release()
