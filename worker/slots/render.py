"""A slot's answer to a doorbell: claim a job, render and store its images, decide the attempt's outcome and write it.

One doorbell is at most one job. A look is an answer to none.
"""

from collections.abc import Callable
from typing import Protocol

import structlog

from shared.errors import Canceled, FarmError, RenderFailed
from shared.infra import tracing
from shared.jobs.lifecycle import Claim
from shared.vocabulary.states import JobState
from worker.slots.attempts import Attempts
from worker.slots.claim_gate import ClaimGate
from worker.slots.guarded_engine import GuardedEngine
from worker.slots.image_store import ImageStore
from worker.slots.leases import Leases, RunningJob
from worker.slots.outcomes import Aborted, AttemptOutcome, Decision, Failed, Images, Released, Succeeded, decide

log = structlog.get_logger(__name__)


class AttemptCounter(Protocol):
    """Counts how attempts end."""

    def __call__(self, checkpoint: str, outcome: str, *, code: str = "", images: int = 0) -> None:
        """Count one at a job of this checkpoint; `code` says why it failed, `images` how many pictures it gave."""


class Renderer:
    """Answers doorbells. The slots of one worker share it."""

    def __init__(
        self,
        attempts: Attempts,
        engine: GuardedEngine,
        images: ImageStore,
        leases: Leases,
        claim_gate: ClaimGate,
        ended: AttemptCounter = lambda *_, **__: None,
        cedes: Callable[[str, object], bool] = lambda *_: False,
    ) -> None:
        self._attempts = attempts
        self._engine = engine
        self._images = images
        self._leases = leases
        self._claim_gate = claim_gate
        self._ended = ended
        self._cedes = cedes

    def answer(self, claimed: Callable[[], None] = lambda: None) -> bool:
        """Answer one doorbell, and call `claimed` once it has led to a job. Returns whether it has, when that has ended."""
        claim = self._claim_gate.acquire(self._attempts.claim)
        if claim is None:
            return False
        try:
            claimed()
            with (
                structlog.contextvars.bound_contextvars(job_id=str(claim.job_id), attempt=claim.attempt),
                tracing.job_span("job.attempt", claim.job_id, attempt=claim.attempt, worker=self._attempts.worker_id),
            ):
                log.info("job.claimed", losses=claim.losses)
                self._run(claim)
        finally:
            self._claim_gate.release(claim)
        if claim.is_limited:
            # The doorbells of what its key could not run yet were heard in vain.
            self._attempts.ring(claim.params.checkpoint)
        return True

    def drain(self) -> None:
        """Claim nothing more; what runs may finish."""
        self._claim_gate.close()

    def _run(self, claim: Claim) -> None:
        running = RunningJob(claim)
        self._leases.enter(running)
        try:
            self._attempts.publish(claim, JobState.RUNNING)
            result = self._result(running)
            decision = decide(
                result,
                is_drained=running.is_drained,
                is_unfit=self._engine.is_unfit(result),
                is_ceded=self._cedes(claim.params.checkpoint, result),
            )
            self._count(running.claim, self._apply(running, decision))
        finally:
            self._leases.leave(running)

    def _result(self, running: RunningJob) -> Images | FarmError | Canceled:
        """Return a job's stored images, or what its attempt raised."""
        try:
            self._claim_gate.wait_for_company(running.claim, lambda: running.is_aborted)
            return self._render(running)
        except (Canceled, FarmError) as error:
            return error
        except Exception as error:
            log.exception("job.crashed")
            return RenderFailed(f"The worker met an unexpected {type(error).__name__}; its log has the details.")

    def _render(self, running: RunningJob) -> Images:
        specs = self._images.specs(running)
        try:
            self._engine.submit(running, specs.specs())
            return [
                self._images.put(running, index, specs.finished(self._engine.pixels(running, request)))
                for index, request in enumerate(running.requests)
            ]
        except BaseException:
            running.abort()
            raise

    def _apply(self, running: RunningJob, decision: Decision) -> AttemptOutcome:
        """Write a decision into the job's row. Returns `Superseded` where the row has moved on meanwhile."""
        match decision:
            case Succeeded(images):
                return self._attempts.succeed(running, images)
            case Failed(error):
                return self._attempts.fail(running, error)
            case Released(is_spoiled):
                self._engine.save(running, is_spoiled=is_spoiled)
                self._attempts.release(running)
                return decision
            case Aborted():
                return decision

    def _count(self, claim: Claim, outcome: AttemptOutcome) -> None:
        code = outcome.error.code if isinstance(outcome, Failed) else ""
        images = len(outcome.images) if isinstance(outcome, Succeeded) else 0
        self._ended(claim.params.checkpoint, outcome.label, code=code, images=images)
