"""The state machine of a job. Pure; `shared.jobs` applies it in the database.

QUEUED ──claim──▶ RUNNING ──succeed──▶ SUCCEEDED
  │  ▲              │ │ ├───fail─────▶ FAILED
  │  │              │ │ └───cancel───▶ CANCELED
  │  └─retry/rescue─┘ │
  │  └─────release────┘
  ├──cancel──▶ CANCELED
  └──expire──▶ EXPIRED
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class JobState(StrEnum):
    """The state of a job. Final states never change."""

    # A worker's claim moves it on. A crash leaves it here: the row waits and the courier rings again.
    QUEUED = "queued"
    # The worker that holds the lease moves it on. A crash leaves it here until the lease runs out and a courier rescues it.
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        """Whether no transition leaves this state."""
        return not TRANSITIONS[self]


TRANSITIONS: Mapping[JobState, frozenset[JobState]] = MappingProxyType(
    {
        JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELED, JobState.EXPIRED}),
        JobState.RUNNING: frozenset({JobState.QUEUED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED}),
        JobState.SUCCEEDED: frozenset(),
        JobState.FAILED: frozenset(),
        JobState.CANCELED: frozenset(),
        JobState.EXPIRED: frozenset(),
    }
)


def sources(to: JobState) -> frozenset[JobState]:
    """Return the states from which a job may move to `to`."""
    return frozenset(state for state, targets in TRANSITIONS.items() if to in targets)
