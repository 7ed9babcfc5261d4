"""Snapshots of running jobs in the storage: another attempt, on any worker, resumes an interrupted one.

One object per attempt in the storage, which outlives Redis and its memory. The row names the attempt before the object is
written, guarded as every act of an attempt: what a zombie writes, nobody reads. A snapshot that cannot be kept or read costs the
steps that it would have saved and never the job.
"""

import hashlib
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import structlog

from shared.errors import FarmError, StorageUnavailable
from shared.infra.db import Database
from shared.infra.storage import Storage, snapshot_key
from shared.jobs import lifecycle
from shared.jobs.lifecycle import Attempt, Claim
from shared.settings import Settings
from worker.engine.snapshot import BadSnapshot, Snapshot, pack, unpack
from worker.slots.leases import RunningJob

CONTENT_TYPE = "application/octet-stream"
READ_S = 5.0  # a slot that waits for the storage delivers nothing
LOOK_BACK = 3  # attempts: the last may have died between its row and its object
LIBRARIES = ("torch", "diffusers", "transformers")
PACKAGES = ("diffusion", "engine", "residency")

log = structlog.get_logger(__name__)


class Snapshots:
    """The snapshots of one worker's jobs."""

    def __init__(self, db: Database, settings: Settings, *, storage: Storage | None = None) -> None:
        self._db = db
        self._every_s = settings.snapshot_seconds
        self._storage = storage or Storage(settings, tries=1, read_s=READ_S)
        self._code = code()

    def due_s(self, running: RunningJob) -> float | None:
        """Return the seconds until a job's next snapshot; None for never."""
        return max(0.0, running.kept_at + self._every_s - time.monotonic()) if self._every_s else None

    def keep(self, running: RunningJob) -> None:
        """Write a snapshot of a job's images, unless none has moved since the last."""
        running.kept_at = time.monotonic()
        weights = next((request.weights for request in running.requests if request.snapshot), "")
        images = {
            index: request.snapshot
            for index, request in enumerate(running.requests)
            if request.snapshot and request.weights == weights
        }
        steps = sum(snapshot.steps_done for snapshot in images.values())
        if steps <= running.kept_steps:
            return
        try:
            size_bytes = self._write(running.claim, images, weights)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not cost the job
            log.warning("snapshot.not_kept", error=str(error))
            return
        running.kept_steps = steps
        log.info("snapshot.kept", steps=steps, bytes=size_bytes)

    def recall(self, claim: Claim, weights: str) -> Mapping[int, Snapshot]:
        """Return the snapshots of a job's images by index, and note in its row that it resumes from them. Empty: start over.

        `weights` tells those that it is rendered with from others.
        """
        images = self._read(claim, weights)
        steps = sum(snapshot.steps_done for snapshot in images.values())
        if not steps:
            return {}
        log.info("job.resumed", steps=steps)
        try:
            with self._db.transaction() as session:
                lifecycle.resume(session, claim, steps)
        except FarmError as error:
            log.warning("job.resumed_unseen", error=str(error))
        return images

    def discard(self, run: Attempt) -> None:
        """Delete an attempt's snapshot: its worker turned out to be unfit."""
        try:
            self._storage.delete(snapshot_key(run.job_id, run.attempt))
        except StorageUnavailable as error:
            log.warning("snapshot.not_discarded", error=str(error))

    def _write(self, claim: Claim, images: Mapping[int, Snapshot], weights: str) -> int:
        """Write an attempt's snapshot over its former one. Returns its bytes, 0 if it was not written."""
        data = pack(images, self._mark(claim, weights))
        if data is None:
            return 0
        with self._db.transaction() as session:
            if not lifecycle.note_snapshot(session, claim):
                return 0
        self._storage.put(snapshot_key(claim.job_id, claim.attempt), data, content_type=CONTENT_TYPE)
        return len(data)

    def _read(self, claim: Claim, weights: str) -> Mapping[int, Snapshot]:
        last = claim.snapshot_attempt or 0
        for attempt in range(last, max(0, last - LOOK_BACK), -1):
            try:
                return unpack(self._storage.get(snapshot_key(claim.job_id, attempt)), self._mark(claim, weights))
            except (FarmError, BadSnapshot) as error:
                log.warning("snapshot.unusable", kept_by=attempt, error=str(error))
        return {}

    def _mark(self, claim: Claim, weights: str) -> bytes:
        """Return the identity that a snapshot must match: job, parameters, weights, code."""
        # Without defaults: the next release may know a parameter more.
        return f"{claim.job_id} {weights} {self._code} {claim.params.model_dump_json(exclude_defaults=True)}".encode()


def code(worker: Path = Path(__file__).parents[1]) -> str:
    """Return a digest of the libraries and of the source under `worker` that decide what a step makes of latents.

    Raises `FileNotFoundError` for a package without source: snapshots of different code would share its digest.
    """
    digest = hashlib.sha256(" ".join(metadata.version(library) for library in LIBRARIES).encode())
    for package in PACKAGES:
        sources = sorted((worker / package).rglob("*.py"))
        if not sources:
            raise FileNotFoundError(f"{worker / package} holds no Python source to tell one version's snapshots by.")
        for source in sources:
            digest.update(source.read_bytes())
    return digest.hexdigest()
