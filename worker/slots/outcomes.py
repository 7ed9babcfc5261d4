"""Outcomes of an attempt as values, and the decision which one a render has come to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from shared.errors import Canceled, FarmError
from shared.jobs.lifecycle import FinishedImage

Images = Sequence[FinishedImage]


@dataclass(frozen=True, slots=True)
class Succeeded:
    """All images are stored."""

    images: Images
    label: ClassVar[str] = "succeeded"


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt raised, and counts against the job. `is_retried` is known once its row is written."""

    error: FarmError
    is_retried: bool = False

    @property
    def label(self) -> str:
        """Name the outcome for metrics: another attempt follows, or the job has failed."""
        return "retried" if self.is_retried else "failed"


@dataclass(frozen=True, slots=True)
class Released:
    """No fault of the job's: it goes back into the queue. `is_spoiled`: the worker is unfit, so its snapshot is discarded."""

    is_spoiled: bool = False
    label: ClassVar[str] = "released"


@dataclass(frozen=True, slots=True)
class Aborted:
    """Canceled, rescued or timed out: the row has already moved on without the attempt."""

    label: ClassVar[str] = "aborted"


@dataclass(frozen=True, slots=True)
class Superseded:
    """The guard on the row refused a late write: the attempt no longer holds the job."""

    label: ClassVar[str] = "superseded"


Decision = Succeeded | Failed | Released | Aborted
AttemptOutcome = Decision | Superseded


def decide(
    result: Images | FarmError | Canceled, *, is_drained: bool, is_unfit: bool, is_ceded: bool = False
) -> Decision:
    """Decide an attempt's outcome from what the render gave or raised.

    `is_drained`: the worker withdrew the job because it leaves. `is_unfit`: the worker, not the job, made the render fail.
    `is_ceded`: the worker has lost the job's checkpoint.
    """
    match result:
        case Canceled():
            return Released() if is_drained else Aborted()
        case FarmError():
            return Released(is_spoiled=is_unfit) if is_unfit or is_ceded else Failed(result)
        case images:
            return Succeeded(images)
