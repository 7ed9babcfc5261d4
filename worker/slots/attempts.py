"""Attempts of one worker in the job database: each is claimed, and ended by one guarded act of `shared.jobs.lifecycle`.

An attempt that lost its job changes nothing. What was written is published to listeners, and doorbells are rung for jobs that
are claimable again.
"""

import time
from collections import Counter
from collections.abc import Callable
from itertools import count, starmap
from typing import TypeVar

import structlog
from celery import Celery
from redis import Redis

from shared.errors import DatabaseUnavailable, FarmError
from shared.infra import broker, events
from shared.infra.db import Database
from shared.jobs import lifecycle, rescue
from shared.jobs.lifecycle import Claim
from shared.settings import Settings
from shared.vocabulary.states import JobState
from worker.slots.leases import RunningJob
from worker.slots.open_checkpoints import OpenCheckpoints
from worker.slots.outcomes import Failed, Images, Succeeded, Superseded
from worker.slots.retry import retry

# One claim in so many begins with the priority of the job that waits longest: with high priorities always waiting, the rest
# still gets an eighth of the farm.
OLDEST_LEVEL_EVERY = 8

log = structlog.get_logger(__name__)
T = TypeVar("T")


class Attempts:
    """Claims jobs of the open checkpoints for a worker, and writes how their attempts end."""

    def __init__(
        self,
        db: Database,
        redis: Redis,
        celery: Celery,
        settings: Settings,
        *,
        opened: OpenCheckpoints,
        worker_id: str,
    ) -> None:
        self._db = db
        self._redis = redis
        self._celery = celery
        self._settings = settings
        self._opened = opened
        self.worker_id = worker_id
        # The first claim that looks after the lowest priority is not the very first one.
        self._claims = count(1)

    def take_over(self) -> None:
        """Put back into the queue what a former process of this worker still held."""
        with self._db.transaction() as session:
            moved = rescue.take_over(session, self.worker_id)
            waiting = Counter(lifecycle.checkpoints(session, [job_id for job_id, _ in moved]))
        for job_id, state in moved:
            log.warning("job.taken_over", job_id=str(job_id), state=state)
        events.publish(self._redis, *starmap(events.JobEvent, moved))
        for checkpoint, times in waiting.items():
            self.ring(checkpoint, times)

    def claim(self) -> Claim | None:
        """Claim the next job of the open checkpoints, if there is one."""
        is_level = next(self._claims) % OLDEST_LEVEL_EVERY == 0
        with self._db.transaction() as session:
            for checkpoint in self._opened.in_turn():
                claim = lifecycle.claim_next(
                    session, checkpoint, self.worker_id, lease_s=self._settings.lease_seconds, oldest_level=is_level
                )
                if claim is not None:
                    return claim
        return None

    def succeed(self, running: RunningJob, images: Images) -> Succeeded | Superseded:
        """Publish a job's images and end it."""
        claim = running.claim

        def write() -> bool:
            with self._db.transaction() as session:
                return lifecycle.succeed(session, claim, images)

        if not self._insist(write, is_leaving=lambda: running.is_drained):
            # The attempt is bound to the log: each of these lines is a late write that was refused.
            log.warning("job.superseded")
            return Superseded()
        log.info("job.succeeded", images=len(images))
        self.publish(claim, JobState.SUCCEEDED)
        return Succeeded(images)

    def fail(self, running: RunningJob, error: FarmError) -> Failed | Superseded:
        """End an attempt that raised: its job is tried again or has failed."""
        claim = running.claim

        def write() -> JobState | None:
            with self._db.transaction() as session:
                return lifecycle.fail(session, claim, error, retry_s=self._settings.retry_seconds)

        state = self._insist(write, is_leaving=lambda: running.is_drained)
        if state is None:
            log.warning("job.superseded", code=error.code, error=str(error))
            return Superseded()
        log.warning("job.attempt_failed", code=error.code, error=str(error), state=state)
        self.publish(claim, state)
        if state is JobState.QUEUED and not self._settings.retry_seconds:
            # Else the courier rings once the next attempt is due.
            self.ring(claim.params.checkpoint)
        return Failed(error, is_retried=state is JobState.QUEUED)

    def release(self, running: RunningJob) -> None:
        """Put a job back into the queue, through no fault of its own. One that has ended meanwhile is left alone."""
        claim = running.claim

        def write() -> bool:
            with self._db.transaction() as session:
                return lifecycle.release(session, claim)

        if self._insist(write, is_leaving=lambda: True):
            log.info("job.released")
            self.publish(claim, JobState.QUEUED)
            self.ring(claim.params.checkpoint)

    def publish(self, claim: Claim, state: JobState) -> None:
        """Tell listeners the state that a job has now."""
        events.publish(self._redis, events.JobEvent(claim.job_id, state))

    def ring(self, checkpoint: str, times: int = 1) -> None:
        """Ring the doorbell of a checkpoint."""
        broker.ring(self._celery, checkpoint, times)

    def _insist(self, write: Callable[[], T], *, is_leaving: Callable[[], bool]) -> T:
        """Repeat an act until the database answers: meanwhile nobody else can take the job, and afterwards the act is guarded.

        A worker that is leaving insists for no longer than a lease; then the job is lost with it.
        """
        deadline = float("inf")

        def wait(error: DatabaseUnavailable, pause_s: float) -> None:
            nonlocal deadline
            if is_leaving():
                deadline = min(deadline, time.monotonic() + self._settings.lease_seconds)
            if time.monotonic() >= deadline:
                raise error
            time.sleep(pause_s)

        return retry(write, on=DatabaseUnavailable, wait=wait)
