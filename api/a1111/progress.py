"""Progress of a call, counted as A1111 counts: iterations are jobs, each with its steps. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from api.a1111.answers import stamp
from api.a1111.calls import A1111Call
from shared.infra.tables import JobRow
from shared.vocabulary.params import GenerationParams
from shared.vocabulary.states import JobState

# The progress that A1111 shows of a job that has just begun.
FIRST = 0.01


@dataclass(frozen=True, slots=True)
class CallProgress:
    """Progress of a call: the share of its steps that are done, from 0 to 1, and an estimate of the seconds left."""

    share: float
    eta_s: float
    job_no: int
    job_count: int
    step: int
    steps: int
    name: str
    began: str

    def state(self) -> dict[str, Any]:
        """Return A1111's `state` object."""
        return {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": self.name,
            "job_count": self.job_count,
            "job_timestamp": self.began,
            "job_no": self.job_no,
            "sampling_step": self.step,
            "sampling_steps": self.steps,
        }


IDLE = CallProgress(share=0, eta_s=0, job_no=0, job_count=0, step=0, steps=0, name="", began="0")


def of(call: A1111Call | None, now: datetime) -> CallProgress:
    """Return the progress of a call at `now`; `IDLE` for None and for a finished call."""
    if call is None or call.is_final:
        return IDLE
    done = sum(1 for job in call.jobs if JobState(job.state).is_final)
    share = _share(call.jobs)
    steps = GenerationParams.model_validate(call.jobs[0].params).steps
    at = running(call)
    return CallProgress(
        share=share,
        eta_s=_eta_s(call.jobs, share, now),
        job_no=done,
        job_count=len(call.jobs),
        step=int(steps * at.steps_done / at.steps_total) if at and at.steps_total else 0,
        steps=steps,
        name=_name(call, done),
        began=stamp(call.row.created_at),
    )


def running(call: A1111Call) -> JobRow | None:
    """Return the first running job of a call."""
    return next((job for job in call.jobs if job.state == JobState.RUNNING), None)


def _share(jobs: Sequence[JobRow]) -> float:
    total = sum(job.steps_total for job in jobs)
    done = sum(job.steps_total if JobState(job.state).is_final else job.steps_done for job in jobs)
    has_begun = any(job.state != JobState.QUEUED for job in jobs)
    return min(1.0, done / max(total, 1) + FIRST) if has_begun else 0.0


def _eta_s(jobs: Sequence[JobRow], share: float, now: datetime) -> float:
    began = min((job.started_at for job in jobs if job.started_at), default=None)
    if began is None or not share:
        return 0.0
    elapsed_s = max(0.0, (now - began).total_seconds())
    return elapsed_s / share - elapsed_s


def _name(call: A1111Call, done: int) -> str:
    iterations = call.row.about["n_iter"]
    if iterations == 1:
        return f"scripts_{call.row.about['kind']}"
    each = max(1, len(call.jobs) // iterations)
    return f"Batch {min(done // each + 1, iterations)} out of {iterations}"
