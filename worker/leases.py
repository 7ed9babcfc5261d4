"""The jobs that this worker runs, and its word that it still runs them.

One thread extends the leases of all of them in one statement and writes their progress. A job that the database no longer
grants, or that an event says was canceled, is aborted; its requests stop at their next denoising step.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event, Lock, Thread
from uuid import UUID

import structlog

from shared import fleet, jobs
from shared.db import Database
from shared.errors import DatabaseUnavailable
from shared.events import JobEvent
from shared.settings import Settings
from shared.states import JobState
from worker.engine.pace import Pace
from worker.engine.request import Request

HUNG_EXIT_STATUS = 70  # EX_SOFTWARE

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Running:
    """A claimed job and its requests in the engine."""

    claim: jobs.Claim
    requests: list[Request] = field(default_factory=list)
    was_drained: bool = False
    is_aborted: bool = False
    _reported: int = field(default=-1)
    _reported_at: float = field(default=0.0)

    @property
    def steps_done(self) -> int:
        """Denoising steps over all images."""
        return sum(request.steps_done for request in self.requests)

    @property
    def is_rendered(self) -> bool:
        """Whether the engine is done with all of it, well or badly."""
        images = self.claim.params.num_images
        return len(self.requests) == images and all(request.is_done for request in self.requests)

    def add(self, request: Request) -> None:
        """Follow one more request; withdraw it at once if the job was aborted before."""
        self.requests.append(request)
        if self.is_aborted:
            request.cancel()

    def abort(self) -> None:
        """Withdraw every request; each stops at its next step."""
        self.is_aborted = True
        for request in list(self.requests):
            request.cancel()

    def is_due(self, now: float, heartbeat_s: float) -> bool:
        """Whether there is progress to report, or the lease wants extending."""
        return self.steps_done != self._reported or now - self._reported_at >= heartbeat_s

    def beat(self, now: float) -> jobs.Beat:
        """Report, and remember what was reported."""
        self._reported, self._reported_at = self.steps_done, now
        return jobs.Beat(self.claim.job_id, self.claim.attempt, self._reported)


class Leases:
    """The book of running jobs and the thread that keeps it true."""

    def __init__(
        self,
        db: Database,
        settings: Settings,
        worker_id: str,
        *,
        engine_silence_s: Callable[[], float],
        pace: Callable[[], Pace] = Pace,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._db = db
        self._settings = settings
        self._worker_id = worker_id
        self._engine_silence_s = engine_silence_s
        self._pace = pace
        self._clock = clock
        self._running: dict[UUID, Running] = {}
        self._lock = Lock()
        self._stopped = Event()
        self._seen_at = float("-inf")
        self._thread = Thread(target=self._run, name="leases", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """Stop beating; leases that are left run out by themselves."""
        self._stopped.set()
        self._thread.join(timeout=5)

    def enter(self, running: Running) -> None:
        """Keep the lease of a job from now on."""
        with self._lock:
            self._running[running.claim.job_id] = running

    def leave(self, running: Running) -> None:
        """Let go of a job that is done. A later attempt of the same job is left alone."""
        with self._lock:
            if self._running.get(running.claim.job_id) is running:
                del self._running[running.claim.job_id]

    def hear(self, event: JobEvent) -> None:
        """Abort a running job that someone canceled."""
        if event.state is JobState.CANCELED:
            running = self._running.get(event.job_id)
            if running is not None:
                log.info("job.canceled", job_id=str(event.job_id), attempt=running.claim.attempt)
                running.abort()

    def running(self) -> list[Running]:
        """Return the jobs that this worker runs now."""
        with self._lock:
            return list(self._running.values())

    def drain(self) -> None:
        """Abort every running job so that its slot hands it back."""
        for running in self.running():
            running.was_drained = True
            running.abort()

    def beat(self) -> None:
        """Report once: the worker itself and every job that is due."""
        now = self._clock()
        due = [running for running in self.running() if running.is_due(now, self._settings.heartbeat_seconds)]
        worker_is_due = now - self._seen_at >= self._settings.heartbeat_seconds
        if not due and not worker_is_due:
            return
        with self._db.transaction() as session:
            held = jobs.heartbeat(session, [running.beat(now) for running in due], lease_s=self._settings.lease_seconds)
            if worker_is_due:
                pace = self._pace()
                fleet.beat(session, self._worker_id, speed=pace.speed, tick_s=pace.tick_s, batch_fill=pace.batch_fill)
                self._seen_at = now
        for running in due:
            # A job that is rendered may just have ended by its slot's own hand.
            if running.claim.job_id not in held and not running.is_rendered:
                log.warning("lease.lost", job_id=str(running.claim.job_id), attempt=running.claim.attempt)
                running.abort()

    def _run(self) -> None:
        while not self._stopped.wait(self._settings.progress_seconds):
            self._end_if_hung()
            try:
                self.beat()
            except DatabaseUnavailable as error:
                log.warning("heartbeat.missed", error=str(error))
            except Exception:  # the thread must outlive any one report, or every lease would run out
                log.exception("heartbeat.crashed")

    def _end_if_hung(self) -> None:
        """Leave when the device hangs, for it cannot be interrupted: the leases run out and others take the jobs."""
        silence_s = self._engine_silence_s()
        if silence_s > self._settings.hang_seconds:
            log.critical("engine.hung", silence_s=round(silence_s, 1))
            os._exit(HUNG_EXIT_STATUS)
