"""Pictures of running jobs in the storage: what a job starts from, and the images that it gives."""

import hashlib
import json
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import structlog

from shared.errors import Canceled, StorageUnavailable
from shared.files.pictures import MAX_INPUT_PIXELS, PixelBudget
from shared.infra import tracing
from shared.infra.storage import Storage, image_key, input_digest
from shared.jobs.lifecycle import FinishedImage
from shared.settings import Settings
from shared.vocabulary import infotext
from shared.vocabulary.params import GenerationParams
from worker.bundle import Judge
from worker.engine.request import Pixels
from worker.slots import png
from worker.slots.engine_specs import EngineSpecs
from worker.slots.leases import RunningJob
from worker.slots.retry import retry

PNG = "image/png"
# Of init images and masks at once, over all slots: two of the largest, at up to 0.2 GB each while they are prepared.
DECODED_PIXELS = 2 * MAX_INPUT_PIXELS

log = structlog.get_logger(__name__)
T = TypeVar("T")


class ImageStore:
    """Reads init images and masks, and writes finished images as PNG; those that `safety` flags are black."""

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        *,
        safety: Judge | None = None,
    ) -> None:
        self._storage = storage
        self._settings = settings
        self._safety = safety
        self._budget = PixelBudget(DECODED_PIXELS)

    def specs(self, running: RunningJob) -> EngineSpecs:
        """Return what to ask the engine for. Raises `Canceled`, `ObjectMissing` or `StorageUnavailable`."""
        return self._persist(running, lambda: EngineSpecs.of(running.claim.params, self._input, self._budget))

    def put(self, running: RunningJob, index: int, pixels: Pixels) -> FinishedImage:
        """Store an image of a job. Raises `Canceled` or `StorageUnavailable`."""
        claim = running.claim
        flagged = self._safety is not None and self._safety.flags(pixels)
        if flagged:
            pixels = np.zeros_like(pixels)
        data = encode_png(pixels, claim.params, index, running.requests[index].sha256s)
        key = image_key(claim.job_id, claim.attempt, index)
        with tracing.span("image.store", index=index, bytes=len(data)):
            self._persist(running, lambda: self._storage.put_surely(key, data, content_type=PNG))
        height, width = pixels.shape[:2]
        return FinishedImage(
            index=index,
            seed=claim.params.seeds[index],
            key=key,
            content_type=PNG,
            width=width,
            height=height,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            flagged=flagged,
        )

    def _input(self, key: str) -> bytes:
        return self._storage.get_whole(key, sha256=input_digest(key))

    def _persist(self, running: RunningJob, call: Callable[[], T]) -> T:
        """Repeat a call while the storage is away, as long as the settings say and the job is ours. Its lease is kept."""
        deadline = time.monotonic() + self._settings.upload_seconds

        def wait(error: StorageUnavailable, pause_s: float) -> None:
            if time.monotonic() + pause_s > deadline:
                raise error
            log.warning("storage.retried", **error.log_fields, pause_s=pause_s)
            running.pause(pause_s)
            if running.is_aborted:
                raise Canceled

        return retry(call, on=StorageUnavailable, wait=wait)


def encode_png(pixels: Pixels, params: GenerationParams, index: int, sha256s: infotext.Digests) -> bytes:
    """Encode uint8 pixels (height, width, 3) with the parameters inside: A1111's text and the farm's own JSON."""
    text = infotext.encode(params, index, sha256s)
    own = {**params.model_dump(mode="json"), "image": index, "image_seed": params.seeds[index]}
    return png.encode(pixels, {"parameters": text, "farm": json.dumps(own)})
