"""What a slot does when the doorbell rings: claim a job, have its images rendered, store them, end the job.

One doorbell is at most one job. Every outcome is one guarded act of `shared.jobs.lifecycle`; an attempt that lost its job
changes nothing.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from itertools import count, repeat
from typing import Any, Protocol, TypeVar

import numpy as np
import structlog
from celery import Celery
from redis import Redis

from shared.errors import (
    Canceled,
    DatabaseUnavailable,
    FarmError,
    NotANumber,
    OutOfMemory,
    RenderFailed,
    StorageUnavailable,
    WorkerUnfit,
)
from shared.files.pictures import MAX_INPUT_PIXELS, Room
from shared.infra import broker, events, tracing
from shared.infra.db import Database
from shared.infra.storage import Storage, image_key
from shared.jobs import lifecycle
from shared.settings import Settings
from shared.vocabulary import infotext
from shared.vocabulary.params import GenerationParams
from shared.vocabulary.states import JobState
from worker.bundle import Judge
from worker.engine.engine import Engine
from worker.engine.request import Pixels, Request
from worker.slots import png
from worker.slots.claim_gate import ClaimGate
from worker.slots.engine_specs import EngineSpecs
from worker.slots.leases import Leases, RunningJob
from worker.slots.snapshots import Snapshots

PNG = "image/png"
# One claim in so many begins with the priority of the job that waits longest: with high priorities always waiting, the rest
# still gets an eighth of the farm.
OLDEST_LEVEL_EVERY = 8
# Of init images and masks at once, over all slots: two of the largest, at up to 0.2 GB each while they are prepared.
DECODED_PIXELS = 2 * MAX_INPUT_PIXELS

log = structlog.get_logger(__name__)
T = TypeVar("T")


class AttemptCounter(Protocol):
    """Counts how attempts end."""

    def __call__(self, outcome: str, *, code: str = "", images: int = 0) -> None:
        """Count one; `code` says why it failed, `images` how many pictures it gave."""


class FitnessCheck(Protocol):
    """Says whether what was rendered may be handed out."""

    def vouch(self) -> None:
        """Raise `WorkerUnfit` if it may not."""

    def examine(self) -> bool:
        """Look closely, after something strange. Returns whether all is well."""


class Renderer:
    """Everything that the slots of one worker share."""

    def __init__(
        self,
        settings: Settings,
        *,
        checkpoint: str,
        worker_id: str,
        engine: Engine[Any, Any],
        db: Database,
        storage: Storage,
        redis: Redis,
        celery: Celery,
        leases: Leases,
        safety: Judge | None = None,
        ended: AttemptCounter = lambda *_, **__: None,
        claim_gate: ClaimGate | None = None,
        trust: FitnessCheck | None = None,
        checkpoint_sha256: str | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:
        self._settings = settings
        self._checkpoint = checkpoint
        self._worker_id = worker_id
        self._engine = engine
        self._db = db
        self._storage = storage
        self._redis = redis
        self._celery = celery
        self._leases = leases
        self._safety = safety
        self._ended = ended
        self._claim_gate = claim_gate or ClaimGate()
        self._trust = trust
        self._checkpoint_sha256 = checkpoint_sha256
        self._snapshots = snapshots
        self._room = Room(DECODED_PIXELS)
        # The first claim that looks after the lowest priority is not the very first one.
        self._claims = count(1)

    def answer(self) -> None:
        """Answer one doorbell. Returns when the job it led to has ended, or at once when there is none."""
        claim = self._claim_gate.acquire(self._claim)
        if claim is None:
            return
        try:
            with (
                structlog.contextvars.bound_contextvars(job_id=str(claim.job_id), attempt=claim.attempt),
                tracing.job_span("job.attempt", claim.job_id, attempt=claim.attempt, worker=self._worker_id),
            ):
                log.info("job.claimed", suspect=claim.suspect)
                self._run(claim)
        finally:
            self._claim_gate.release(claim)
        if claim.is_limited:
            # The doorbells of what its key could not run yet were heard in vain.
            broker.ring(self._celery, self._checkpoint)

    def drain(self) -> None:
        """Claim nothing more; what runs may finish."""
        self._claim_gate.close()

    def _claim(self) -> lifecycle.Claim | None:
        with self._db.transaction() as session:
            return lifecycle.claim_next(
                session,
                self._checkpoint,
                self._worker_id,
                lease_s=self._settings.lease_seconds,
                oldest_level=next(self._claims) % OLDEST_LEVEL_EVERY == 0,
            )

    def _run(self, claim: lifecycle.Claim) -> None:
        running = RunningJob(claim)
        self._leases.enter(running)
        self._tell(claim, JobState.RUNNING)
        try:
            if claim.suspect:
                self._claim_gate.wait_until_alone(lambda: running.is_aborted)
            images = self._render(running)
        except Canceled:
            self._end_aborted(running)
        except FarmError as error:
            self._end_failed(running, error)
        except Exception as error:
            log.exception("job.crashed")
            crash = RenderFailed(f"The worker met an unexpected {type(error).__name__}; its log has the details.")
            self._end_failed(running, crash)
        else:
            self._succeed(running, images)
        finally:
            self._leases.leave(running)

    def _render(self, running: RunningJob) -> list[lifecycle.FinishedImage]:
        order = self._persist(running, lambda: EngineSpecs.of(running.claim.params, self._storage.get, self._room))
        try:
            kept = self._snapshots.recall(running.claim) if self._snapshots else {}
            for index, spec in enumerate(order.specs()):
                running.add(self._engine.submit(spec, kept.get(index)))
            return [
                self._store(running, index, order.finished(self._trusted(self._pixels(running, request))))
                for index, request in enumerate(running.requests)
            ]
        except BaseException:
            running.abort()
            raise

    def _pixels(self, running: RunningJob, request: Request) -> Pixels:
        """Wait for an image, and keep now and then where the whole job stands."""
        if self._snapshots is None:
            return request.result(timeout=None)
        while True:
            try:
                return request.result(timeout=self._snapshots.due_s(running))
            except TimeoutError:
                self._vouch()
                self._snapshots.keep(running)

    def _trusted(self, pixels: Pixels) -> Pixels:
        """Return pixels that were rendered by the weights that were loaded. Raises `WorkerUnfit`."""
        self._vouch()
        return pixels

    def _vouch(self) -> None:
        if self._trust is not None:
            self._trust.vouch()

    def _keep(self, running: RunningJob, snapshots: Snapshots) -> None:
        """Leave to the next worker where the job stands, unless this one spoiled it."""
        try:
            self._vouch()
        except (WorkerUnfit, OutOfMemory):  # wrong, or too full to tell
            running.is_spoiled = True
        if running.is_spoiled:
            snapshots.discard(running.claim)
        else:
            snapshots.keep(running)

    def _end_failed(self, running: RunningJob, error: FarmError) -> None:
        if self._is_unfit(error):
            running.was_drained = True  # it is the worker's fault, not the job's
            running.is_spoiled = True
            self._end_aborted(running)
        else:
            self._fail(running, error)

    def _is_unfit(self, error: FarmError) -> bool:
        """Whether an attempt failed because of this worker."""
        if isinstance(error, WorkerUnfit):
            return True
        is_strange = type(error) in {RenderFailed, NotANumber}
        return is_strange and self._trust is not None and not self._trust.examine()

    def _store(self, running: RunningJob, index: int, pixels: Pixels) -> lifecycle.FinishedImage:
        claim = running.claim
        flagged = self._safety is not None and self._safety.flags(pixels)
        if flagged:
            pixels = np.zeros_like(pixels)
        data = encode_png(pixels, claim.params, index, checkpoint_sha256=self._checkpoint_sha256)
        key = image_key(claim.job_id, claim.attempt, index)
        with tracing.span("image.store", index=index, bytes=len(data)):
            self._persist(running, lambda: self._storage.put(key, data, content_type=PNG))
        height, width = pixels.shape[:2]
        return lifecycle.FinishedImage(
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

    def _succeed(self, running: RunningJob, images: list[lifecycle.FinishedImage]) -> None:
        claim = running.claim

        def act() -> bool:
            with self._db.transaction() as session:
                return lifecycle.succeed(session, claim, images)

        if self._insist(running, act):
            log.info("job.succeeded", images=len(images))
            self._ended("succeeded", images=len(images))
            self._tell(claim, JobState.SUCCEEDED)
        else:
            # The attempt is bound to the log: each of these lines is a late write that was refused.
            log.warning("job.superseded")
            self._ended("superseded")

    def _fail(self, running: RunningJob, error: FarmError) -> None:
        claim = running.claim

        def act() -> JobState | None:
            with self._db.transaction() as session:
                return lifecycle.fail(session, claim, error, retry_s=self._settings.retry_seconds)

        state = self._insist(running, act)
        if state is None:
            log.warning("job.superseded", code=error.code, error=str(error))
            self._ended("superseded")
            return
        log.warning("job.attempt_failed", code=error.code, error=str(error), state=state)
        self._ended("retried" if state is JobState.QUEUED else "failed", code=error.code)
        self._tell(claim, state)
        if state is JobState.QUEUED and not self._settings.retry_seconds:
            # Else the courier rings once the next attempt is due.
            broker.ring(self._celery, self._checkpoint)

    def _end_aborted(self, running: RunningJob) -> None:
        self._ended("released" if running.was_drained else "aborted")
        if not running.was_drained:
            return  # canceled or rescued: the row has already moved on without us
        if self._snapshots is not None:
            self._keep(running, self._snapshots)
        self.hand_back(running)

    def hand_back(self, running: RunningJob) -> None:
        """Put a job back into the queue, through no fault of its own. One that has ended meanwhile is left alone."""

        def act() -> bool:
            with self._db.transaction() as session:
                return lifecycle.release(session, running.claim)

        if self._insist(running, act):
            log.info("job.released")
            self._tell(running.claim, JobState.QUEUED)
            broker.ring(self._celery, self._checkpoint)

    def _persist(self, running: RunningJob, act: Callable[[], T]) -> T:
        """Repeat an act while the storage is away, as long as the settings say and the job is ours. Its lease is kept."""
        deadline = time.monotonic() + self._settings.upload_seconds
        for pause_s in _pauses():
            try:
                return act()
            except StorageUnavailable as error:
                if time.monotonic() + pause_s > deadline:
                    raise
                log.warning("storage.retried", **error.told, pause_s=pause_s)
            running.pause(pause_s)
            if running.is_aborted:
                break
        raise Canceled

    def _insist(self, running: RunningJob, act: Callable[[], T]) -> T:
        """Repeat an act until the database answers: meanwhile nobody else can take the job, and afterwards the act is guarded.

        A worker that is leaving insists for no longer than a lease; then the job is lost with it.
        """
        deadline = float("inf")
        for pause_s in _pauses():
            try:
                return act()
            except DatabaseUnavailable:
                if running.was_drained:
                    deadline = min(deadline, time.monotonic() + self._settings.lease_seconds)
                if time.monotonic() >= deadline:
                    raise
            time.sleep(pause_s)
        raise AssertionError("pauses never end")

    def _tell(self, claim: lifecycle.Claim, state: JobState) -> None:
        events.publish(self._redis, events.JobEvent(claim.job_id, state))


def _pauses() -> Iterator[float]:
    """Yield how long to wait before each further try, in seconds."""
    yield from (0.5, 1.0, 2.0)
    yield from repeat(4.0)


def encode_png(pixels: Pixels, params: GenerationParams, index: int, *, checkpoint_sha256: str | None = None) -> bytes:
    """Encode uint8 pixels (height, width, 3) with the parameters inside: A1111's text and the farm's own JSON."""
    text = infotext.encode(params, index, checkpoint_sha256=checkpoint_sha256)
    own = {**params.model_dump(mode="json"), "image": index, "image_seed": params.seeds[index]}
    return png.encode(pixels, {"parameters": text, "farm": json.dumps(own)})
