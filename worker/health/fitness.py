"""Self-examination of a gpu worker: its weights must be the bits that it loaded, its canary must agree with other workers'.

The weights are checksummed again before any picture is handed out, which on a GPU takes milliseconds; the canary is rendered at
the start, now and then, and after a strange error. A worker that fails either is condemned, once, and vouches for nothing more.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol

import numpy as np
import structlog

from shared.errors import DatabaseUnavailable, EngineStopped, OutOfMemory, WorkerUnfit
from shared.infra.db import Database
from shared.vocabulary.samplers import Sampler, Schedule
from worker.engine.engine import Engine
from worker.engine.request import ImageSpec, Pass
from worker.health import canaries
from worker.health.canaries import CanaryResult

# Of 255. Kernels of one device differ by less than one level in the mean; a broken multiplication by tens.
TOLERANCE_LEVELS = 4.0
CANARY = ImageSpec(
    passes=(
        Pass(
            prompt="a lighthouse on a cliff, morning light",
            negative_prompt="",
            width=128,
            height=128,
            steps=4,
            guidance_scale=7.0,
            sampler=Sampler.DDIM,
            schedule=Schedule.UNIFORM,
        ),
    ),
    seed=15,
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Proof:
    """How a device is examined: workers with the same `key` must agree, `weights` checksums the weights in memory."""

    key: str
    weights: Callable[[], str]


class FitnessCheck(Protocol):
    """Says whether rendered pictures may be handed out."""

    def vouch(self) -> None:
        """Raise `WorkerUnfit` if they may not."""

    def examine(self) -> bool:
        """Examine the worker, after a strange error. Returns whether it is fit."""


class Unexamined:
    """The check of a device without a proof: nothing is known against it."""

    def vouch(self) -> None:
        """Raise nothing."""

    def examine(self) -> bool:
        """Return True."""
        return True


@dataclass(slots=True)
class Fitness:
    """Examines one worker. `condemn` gets the reason why it must leave; `timeout_s` bounds one canary."""

    engine: Engine[Any, Any]
    proof: Proof
    db: Database
    worker_id: str
    condemn: Callable[[str], None]
    timeout_s: float
    clock: Callable[[], float] = time.monotonic
    _first: CanaryResult | None = None
    _reason: str | None = None
    _summed_at: float = float("-inf")
    _summing: Lock = field(default_factory=Lock)
    _examining: Lock = field(default_factory=Lock)

    def open(self) -> None:
        """Examine a worker that has not begun. Raises `WorkerUnfit`, also on a tie with another worker."""
        self._first = result = self._render_canary()
        if reason := contradiction(result, self._others(result), is_new=True):
            raise WorkerUnfit(reason)

    def examine(self) -> bool:
        """Examine the worker again, and condemn it if it is wrong. Returns whether it is fit."""
        with self._examining:
            if self._reason is None and (reason := self._fault()):
                self._convict(reason)
            return self._reason is None

    def vouch(self) -> None:
        """Checksum the weights again, after the pictures were rendered. Concurrent callers share a checksum.

        Raises `WorkerUnfit` if the weights have changed since they were loaded, `OutOfMemory` where that cannot be told.
        """
        asked_at = self.clock()
        with self._summing:
            # A sum that began after the question answers it, too: slots that wait here share one.
            if self._reason is None and self._summed_at <= asked_at:
                began = self.clock()
                if reason := self._changed_weights():
                    self._convict(reason)
                self._summed_at = began
        if self._reason is not None:
            raise WorkerUnfit(self._reason)

    def _changed_weights(self) -> str | None:
        try:
            is_same = self._first is None or self.proof.weights() == self._first.weights
        except OutOfMemory:  # a device that is full is not broken; the job is tried again
            raise
        except Exception as error:  # noqa: BLE001 - a device that cannot add up has no error of its own
            return f"The weights in memory cannot be read ({type(error).__name__})."
        return None if is_same else "The weights in memory are no longer those that were loaded."

    def _fault(self) -> str | None:
        try:
            result = self._render_canary()
        except EngineStopped:
            return None
        except TimeoutError:
            log.warning("canary.not_finished", timeout_s=self.timeout_s)  # a device that hangs is the watchdog's
            return None
        except OutOfMemory:
            log.warning("canary.out_of_memory")  # a device that is full is not broken
            return None
        except Exception as error:  # noqa: BLE001 - whatever a broken device raises
            return f"The canary could not be rendered: {error}"
        own = _fault_between(result, self._first) if self._first else None
        return own or contradiction(result, self._others(result))

    def _render_canary(self) -> CanaryResult:
        picture = self.engine.submit(CANARY).result(self.timeout_s)
        if not np.ptp(picture):
            raise WorkerUnfit("The canary is one flat colour.")
        return CanaryResult(self.proof.weights(), picture.tobytes())

    def _others(self, result: CanaryResult) -> Sequence[CanaryResult]:
        try:
            with self.db.transaction() as session:
                return canaries.record(session, self.proof.key, self.worker_id, result)
        except DatabaseUnavailable:
            # What it showed when it started is known without.
            log.warning("canary.not_compared")
            return []

    def _convict(self, reason: str) -> None:
        self._reason = reason
        self.condemn(reason)


def contradiction(mine: CanaryResult, others: Sequence[CanaryResult], *, is_new: bool = False) -> str | None:
    """Return the fault of a worker whose result more workers contradict than agree with; None for a fit one.

    The worker counts for itself. On a tie a new worker loses.
    """
    faults = [fault for other in others if (fault := _fault_between(mine, other))]
    agreeing = 1 + len(others) - len(faults)
    is_outvoted = len(faults) > agreeing or (is_new and len(faults) == agreeing)
    return faults[0] if faults and is_outvoted else None


def _fault_between(mine: CanaryResult, other: CanaryResult) -> str | None:
    if mine.weights != other.weights:
        return "The weights in memory are not those of the same file elsewhere."
    levels = _difference(mine.picture, other.picture)
    return f"The canary is {levels:.1f} levels off." if levels > TOLERANCE_LEVELS else None


def _difference(mine: bytes, other: bytes) -> float:
    """Return the mean difference of two pictures' channels, in levels of 255."""
    first, second = (np.frombuffer(picture, np.uint8).astype(np.int16) for picture in (mine, other))
    return float(np.abs(first - second).mean()) if first.size == second.size else 255.0
