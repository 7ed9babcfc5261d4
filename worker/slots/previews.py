"""Publisher of live previews: small JPEGs of running jobs, put into Redis."""

import io
from collections.abc import Callable, Iterable
from typing import Any

from numpy.typing import NDArray
from PIL import Image
from redis import Redis

from shared.infra import previews
from worker.slots.leases import RunningJob

JPEG_SIDE_PX = 256
JPEG_QUALITY = 80


class PreviewPublisher:
    """Publishes the previews of all running jobs."""

    def __init__(self, redis: Redis, running: Callable[[], Iterable[RunningJob]]) -> None:
        self._redis = redis
        self._running = running

    def renew(self) -> None:
        """Publish the previews made since the last call, and ask the engine for the next."""
        for running in self._running():
            for index, request in enumerate(list(running.requests)):
                if not request.is_done and (pixels := request.take_preview()) is not None:
                    previews.put(self._redis, running.claim.job_id, index, to_jpeg(pixels))


def to_jpeg(pixels: NDArray[Any], side: int = JPEG_SIDE_PX) -> bytes:
    """Encode pixels (h, w, 3) uint8, scaled so that the longer side is `side` pixels."""
    picture = Image.fromarray(pixels)
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    out = io.BytesIO()
    picture.resize(size, Image.Resampling.BICUBIC).save(out, format="JPEG", quality=JPEG_QUALITY)
    return out.getvalue()
