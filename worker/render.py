"""What a slot does when the doorbell rings: claim a job, have its images rendered, store them, end the job.

One doorbell is at most one job. Every outcome is one guarded act of `shared.jobs`; an attempt that lost its job changes nothing.
"""

import hashlib
import json
import time
from collections.abc import Callable
from itertools import count
from typing import Any, Protocol, TypeVar

import numpy as np
import structlog
from celery import Celery
from redis import Redis

from shared import broker, events, infotext, jobs
from shared.db import Database
from shared.errors import Canceled, DatabaseUnavailable, FarmError, RenderFailed
from shared.params import GenerationParams
from shared.settings import Settings
from shared.states import JobState
from shared.storage import Storage, image_key
from worker import png
from worker.engine.engine import Engine
from worker.engine.request import Pixels
from worker.equipment import Judge
from worker.leases import Leases, Running
from worker.order import Order

PNG = "image/png"
# One claim in so many begins with the priority of the job that waits longest: with high priorities always waiting, the rest
# still gets an eighth of the farm.
OLDEST_LEVEL_EVERY = 8

log = structlog.get_logger(__name__)
T = TypeVar("T")


class Counted(Protocol):
    """Counts how attempts end."""

    def __call__(self, outcome: str, *, code: str = "", images: int = 0) -> None:
        """Count one; `code` says why it failed, `images` how many pictures it gave."""


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
        ended: Counted = lambda *_, **__: None,
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
        self._is_draining = False
        # The first claim that looks after the lowest priority is not the very first one.
        self._claims = count(1)

    def answer(self) -> None:
        """Answer one doorbell. Returns when the job it led to has ended, or at once when there is none."""
        if self._is_draining:
            return
        with self._db.transaction() as session:
            claim = jobs.claim_next(
                session,
                self._checkpoint,
                self._worker_id,
                lease_s=self._settings.lease_seconds,
                oldest_level=next(self._claims) % OLDEST_LEVEL_EVERY == 0,
            )
        if claim is None:
            return
        with structlog.contextvars.bound_contextvars(job_id=str(claim.job_id), attempt=claim.attempt):
            log.info("job.claimed")
            self._tell(claim, JobState.RUNNING)
            self._run(claim)
        if claim.is_limited:
            # The doorbells of what its key could not run yet were heard in vain.
            broker.ring(self._celery, self._checkpoint)

    def drain(self) -> None:
        """Claim nothing more; what runs may finish."""
        self._is_draining = True

    def _run(self, claim: jobs.Claim) -> None:
        running = Running(claim)
        self._leases.enter(running)
        try:
            images = self._render(running)
        except Canceled:
            self._end_aborted(running)
        except FarmError as error:
            self._fail(claim, error)
        except Exception as error:
            log.exception("job.crashed")
            self._fail(
                claim, RenderFailed(f"The worker met an unexpected {type(error).__name__}; its log has the details.")
            )
        else:
            self._succeed(claim, images)
        finally:
            self._leases.leave(running)

    def _render(self, running: Running) -> list[jobs.FinishedImage]:
        order = Order.of(running.claim.params, self._storage.get)
        try:
            for spec in order.specs():
                running.add(self._engine.submit(spec))
            return [
                self._store(running.claim, index, order.finished(request.result(timeout=None)))
                for index, request in enumerate(running.requests)
            ]
        except BaseException:
            running.abort()
            raise

    def _store(self, claim: jobs.Claim, index: int, pixels: Pixels) -> jobs.FinishedImage:
        flagged = self._safety is not None and self._safety.flags(pixels)
        if flagged:
            pixels = np.zeros_like(pixels)
        data = encode_png(pixels, claim.params, index)
        key = image_key(claim.job_id, claim.attempt, index)
        self._storage.put(key, data, content_type=PNG)
        height, width = pixels.shape[:2]
        return jobs.FinishedImage(
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

    def _succeed(self, claim: jobs.Claim, images: list[jobs.FinishedImage]) -> None:
        def act() -> bool:
            with self._db.transaction() as session:
                return jobs.succeed(session, claim, images)

        if self._insist(act):
            log.info("job.succeeded", images=len(images))
            self._ended("succeeded", images=len(images))
            self._tell(claim, JobState.SUCCEEDED)
        else:
            log.warning("job.superseded")
            self._ended("superseded")

    def _fail(self, claim: jobs.Claim, error: FarmError) -> None:
        def act() -> JobState | None:
            with self._db.transaction() as session:
                return jobs.fail(session, claim, error, retry_s=self._settings.retry_seconds)

        state = self._insist(act)
        log.warning("job.attempt_failed", code=error.code, error=str(error), state=state)
        self._ended("retried" if state is JobState.QUEUED else "failed", code=error.code)
        if state is not None:
            self._tell(claim, state)
        if state is JobState.QUEUED and not self._settings.retry_seconds:
            # Else the courier rings once the next attempt is due.
            broker.ring(self._celery, self._checkpoint)

    def _end_aborted(self, running: Running) -> None:
        self._ended("released" if running.was_drained else "aborted")
        if not running.was_drained:
            return  # canceled or rescued: the row has already moved on without us

        def act() -> bool:
            with self._db.transaction() as session:
                return jobs.release(session, running.claim)

        if self._insist(act):
            log.info("job.released")
            self._tell(running.claim, JobState.QUEUED)
            broker.ring(self._celery, self._checkpoint)

    def _insist(self, act: Callable[[], T]) -> T:
        """Repeat an act while the database is away, for as long as the lease can last; then the rescuer has the job."""
        deadline = time.monotonic() + self._settings.lease_seconds
        while True:
            try:
                return act()
            except DatabaseUnavailable:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(1.0)

    def _tell(self, claim: jobs.Claim, state: JobState) -> None:
        events.publish(self._redis, events.JobEvent(claim.job_id, state))


def encode_png(pixels: Pixels, params: GenerationParams, index: int) -> bytes:
    """Encode uint8 pixels (height, width, 3) with the parameters inside: A1111's text and the farm's own JSON."""
    own = {**params.model_dump(mode="json"), "image": index, "image_seed": params.seeds[index]}
    return png.encode(pixels, {"parameters": infotext.encode(params, index), "farm": json.dumps(own)})
