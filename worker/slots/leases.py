"""Running jobs of a worker, and the heartbeat thread that extends their leases.

One statement extends all leases and writes the progress. A job is aborted when the database no longer grants its lease or an
event says that it was canceled; its requests stop at their next denoising step.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from threading import Event, Lock, Thread
from uuid import UUID

import structlog

from shared.errors import DatabaseUnavailable
from shared.fleet import registry
from shared.infra.db import Database
from shared.infra.events import JobEvent
from shared.jobs import lifecycle
from shared.settings import Settings
from shared.vocabulary.states import JobState
from worker.engine.pace import Pace
from worker.engine.request import Request

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class RunningJob:
    """A claimed job and its requests in the engine."""

    claim: lifecycle.Claim
    requests: list[Request] = field(default_factory=list)
    # Whether the worker leaves and withdraws the job. Never taken back.
    is_drained: bool = False
    # When a snapshot was last kept, and how many steps it held.
    kept_at: float = field(default_factory=time.monotonic)
    kept_steps: int = 0
    _aborted: Event = field(default_factory=Event)
    _aborted_at: float = field(default=0.0)
    _reported: int = field(default=-1)
    _reported_at: float = field(default=0.0)

    @property
    def steps_done(self) -> int:
        """Denoising steps over all images."""
        return sum(request.steps_done for request in self.requests)

    @property
    def is_rendered(self) -> bool:
        """Whether every image has its pixels or an error."""
        images = self.claim.params.num_images
        return len(self.requests) == images and all(request.is_done for request in self.requests)

    def add(self, request: Request) -> None:
        """Follow one more request; withdraw it at once if the job was aborted before."""
        self.requests.append(request)
        if self.is_aborted:
            request.cancel()

    @property
    def is_aborted(self) -> bool:
        """Whether the slot should stop working on the job."""
        return self._aborted.is_set()

    def pause(self, seconds: float) -> None:
        """Wait, unless the job is aborted."""
        self._aborted.wait(seconds)

    def abort(self, now: float = 0.0) -> None:
        """Withdraw every request; each stops at its next step."""
        if not self.is_aborted:
            self._aborted_at = now
            self._aborted.set()
        for request in list(self.requests):
            request.cancel()

    def drain(self, now: float) -> None:
        """Abort the job so that its slot hands it back."""
        self.is_drained = True  # first: the slot that wakes up reads it
        self.abort(now)

    def overstay_s(self, now: float) -> float:
        """Return for how long the slot has not come back since the job was aborted."""
        return now - self._aborted_at if self.is_aborted and self._aborted_at else 0.0

    def is_due(self, now: float, heartbeat_s: float) -> bool:
        """Whether there is progress to report, or the lease must be extended."""
        return self.steps_done != self._reported or now - self._reported_at >= heartbeat_s

    def beat(self, now: float) -> lifecycle.Beat:
        """Return a heartbeat with the job's progress, and remember it as reported."""
        self._reported, self._reported_at = self.steps_done, now
        return lifecycle.Beat(self.claim.job_id, self.claim.attempt, self._reported)

    def progress(self, version: int) -> JobEvent:
        """Return an event of the progress last reported; it made the row's version `version`."""
        total = self.claim.params.unet_calls
        return JobEvent(self.claim.job_id, JobState.RUNNING, version, self._reported, total)


class Leases:
    """Extends the leases of running jobs by heartbeats, from a thread."""

    def __init__(
        self,
        db: Database,
        settings: Settings,
        worker_id: str,
        *,
        pace: Callable[[], Pace] = Pace,
        on_drain: Callable[[bool], None] = lambda _is_draining: None,
        publish: Callable[..., None] = lambda *_: None,
        vitals: Callable[[], Mapping[str, float | None]] = dict,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._db = db
        self._settings = settings
        self._worker_id = worker_id
        self._pace = pace
        self._on_drain = on_drain
        self._publish = publish
        self._vitals = vitals
        self._clock = clock
        self._running: dict[UUID, RunningJob] = {}
        self._lock = Lock()
        self._stopped = Event()
        self._seen_at = float("-inf")
        self._beat_began: float | None = None
        self._thread = Thread(target=self._run, name="leases", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop the heartbeats; leases that are left run out by themselves."""
        self._stopped.set()
        self._thread.join(timeout=5)

    def enter(self, running: RunningJob) -> None:
        """Extend the lease of a job from now on."""
        with self._lock:
            self._running[running.claim.job_id] = running

    def leave(self, running: RunningJob) -> None:
        """Stop extending the lease of a job that has ended. A later attempt of the same job is left alone."""
        with self._lock:
            if self._running.get(running.claim.job_id) is running:
                del self._running[running.claim.job_id]

    def hear(self, event: JobEvent) -> None:
        """Abort a running job that a client canceled or a courier timed out."""
        if event.state in {JobState.CANCELED, JobState.FAILED}:
            running = self._running.get(event.job_id)
            if running is not None and not running.is_rendered:
                log.info("job.ended_elsewhere", job_id=str(event.job_id), attempt=running.claim.attempt)
                running.abort(self._clock())

    def running(self) -> list[RunningJob]:
        """Return the jobs that this worker runs now."""
        with self._lock:
            return list(self._running.values())

    def drain(self) -> None:
        """Abort every running job so that its slot hands it back."""
        for running in self.running():
            running.drain(self._clock())

    def seconds_in_beat(self) -> float:
        """How long the present heartbeat has taken, in seconds; 0 between heartbeats."""
        began = self._beat_began
        return 0.0 if began is None else self._clock() - began

    def overstay_s(self) -> float:
        """How long the slowest slot has not come back since its job was aborted."""
        now = self._clock()
        return max((running.overstay_s(now) for running in self.running()), default=0.0)

    def beat(self) -> None:
        """Send one heartbeat, of the worker itself and every job that is due."""
        now = self._clock()
        is_draining = False
        due = [running for running in self.running() if running.is_due(now, self._settings.heartbeat_seconds)]
        worker_is_due = now - self._seen_at >= self._settings.heartbeat_seconds
        if not due and not worker_is_due:
            return
        beats = [running.beat(now) for running in due]
        with self._db.transaction() as session:
            held = lifecycle.heartbeat(session, beats, lease_s=self._settings.lease_seconds)
            if worker_is_due:
                pace = self._pace()
                is_draining = registry.beat(
                    session,
                    self._worker_id,
                    speed=pace.speed,
                    tick_s=pace.tick_s,
                    batch_fill=pace.batch_fill,
                    vitals=self._vitals(),
                )
                self._seen_at = now
        self._publish_progress(due, held)
        for running in due:
            if running.claim.job_id not in held:
                # A job that is rendered may just have ended by its slot's own hand.
                if not running.is_rendered:
                    log.warning("lease.lost", job_id=str(running.claim.job_id), attempt=running.claim.attempt)
                running.abort(now)
        if worker_is_due:
            self._on_drain(is_draining)

    def _publish_progress(self, reported: Iterable[RunningJob], held: Mapping[UUID, int]) -> None:
        """Publish the progress of all jobs in one message."""
        progress = [
            running.progress(held[running.claim.job_id]) for running in reported if running.claim.job_id in held
        ]
        if progress:
            self._publish(*progress)

    def _run(self) -> None:
        while not self._stopped.wait(self._settings.progress_seconds):
            self._beat_began = self._clock()
            try:
                self.beat()
            except DatabaseUnavailable as error:
                log.warning("heartbeat.missed", **error.log_fields)
            except Exception:  # the thread must outlive any one report, or every lease would run out
                log.exception("heartbeat.crashed")
            self._beat_began = None
