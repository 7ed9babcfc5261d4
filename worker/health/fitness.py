"""Self-examination of a gpu worker: its weights must be the bits that it loaded, its canaries must agree with other workers'.

The weights are checksummed again before any picture is handed out, which on a GPU takes milliseconds; the canary is rendered at
the start, now and then, and after a strange error, with the checkpoint that is resident then. A worker that fails either is
condemned, once, and vouches for nothing more.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, Protocol

import numpy as np
import structlog

from shared.errors import (
    BadWeights,
    DatabaseUnavailable,
    EngineStopped,
    OutOfMemory,
    Unavailable,
    WeightsMissing,
    WorkerUnfit,
)
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


class WeightsInMemory(Protocol):
    """The weights of a device's checkpoints."""

    @property
    def resident(self) -> str:
        """The checkpoint whose turn it is or was last."""

    def sha256(self, name: str) -> str | None:
        """Return the digest of a checkpoint's file."""

    def digest(self, name: str) -> str | None:
        """Return the digest of a checkpoint's bits in memory as they were first read."""

    def are_sound(self) -> bool:
        """Whether no weights have changed since. Raises `OutOfMemory` where that cannot be told."""


@dataclass(frozen=True, slots=True)
class Proof:
    """How a device is examined. `kind` names all that a picture depends on beyond code and checkpoint."""

    kind: str
    weights: WeightsInMemory

    def key(self, checkpoint: str) -> str:
        """Return the key under which workers must agree about a checkpoint."""
        return f"{checkpoint} {self.weights.sha256(checkpoint)} {self.kind}"


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
    _first: dict[str, CanaryResult] = field(default_factory=dict)
    _reason: str | None = None
    _summed_at: float = float("-inf")
    _summing: Lock = field(default_factory=Lock)
    _examining: Lock = field(default_factory=Lock)

    def open(self) -> None:
        """Examine a worker that has not begun. Raises `WorkerUnfit`, also on a tie with another worker."""
        key, result = self._render_canary()
        self._first[key] = result
        if reason := contradiction(result, self._others(key, result), is_new=True):
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
            is_same = self.proof.weights.are_sound()
        except OutOfMemory:  # a device that is full is not broken; the job is tried again
            raise
        except Exception as error:  # noqa: BLE001 - a device that cannot add up has no error of its own
            return f"The weights in memory cannot be read ({type(error).__name__})."
        return None if is_same else "The weights in memory are no longer those that were loaded."

    def _fault(self) -> str | None:
        try:
            key, result = self._render_canary()
        except EngineStopped:
            return None
        except (BadWeights, WeightsMissing, Unavailable) as error:
            log.warning("canary.no_checkpoint", error=str(error))  # a file that went away is no fault of the device
            return None
        except TimeoutError:
            log.warning("canary.not_finished", timeout_s=self.timeout_s)  # a device that hangs is the watchdog's
            return None
        except OutOfMemory:
            log.warning("canary.out_of_memory")  # a device that is full is not broken
            return None
        except Exception as error:  # noqa: BLE001 - whatever a broken device raises
            return f"The canary could not be rendered: {error}"
        own = _fault_between(result, self._first.setdefault(key, result))
        return self._changed_weights() or own or contradiction(result, self._others(key, result))

    def _render_canary(self) -> tuple[str, CanaryResult]:
        """Render the canary with the resident checkpoint; returns the key that others share, too."""
        checkpoint = self.proof.weights.resident
        picture = self.engine.submit(replace(CANARY, checkpoint=checkpoint)).result(self.timeout_s)
        if not np.ptp(picture):
            raise WorkerUnfit("The canary is one flat colour.")
        result = CanaryResult(self.proof.weights.digest(checkpoint) or "", picture.tobytes())
        return self.proof.key(checkpoint), result

    def _others(self, key: str, result: CanaryResult) -> Sequence[CanaryResult]:
        try:
            with self.db.transaction() as session:
                return canaries.record(session, key, self.worker_id, result)
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
