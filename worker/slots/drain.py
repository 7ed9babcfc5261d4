"""The end of a drain: wait for the slots, and release the jobs of those that are stuck.

A slot releases its job after the present step, unless it is writing to a silent store: the client's tries take minutes, and the
worker's supervisor kills it sooner. Then the job would wait for its lease and count a lost worker.
"""

import time
from collections.abc import Callable, Sequence

import structlog

from shared.errors import DatabaseUnavailable
from worker.slots.leases import RunningJob

# With what else an exit takes, a drain ends within five seconds of the step under way.
PATIENCE_S = 3.5
LOOK_S = 0.1

log = structlog.get_logger(__name__)


def wait_or_release(
    running: Callable[[], Sequence[RunningJob]],
    release: Callable[[RunningJob], None],
    tick_s: Callable[[], float],
    *,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> bool:
    """Wait for the slots of aborted jobs; once the device has rested for `PATIENCE_S`, release the jobs that are left.

    `tick_s` returns how long the present tick has lasted, 0 between ticks: a step under way may take as long as it likes.
    Returns whether every slot came back by itself.
    """
    rested_since = clock()
    while overdue := running():
        if tick_s() > 0:
            rested_since = clock()
        elif clock() - rested_since >= PATIENCE_S:
            _release_all(overdue, release)
            return False
        pause(LOOK_S)
    return True


def _release_all(overdue: Sequence[RunningJob], release: Callable[[RunningJob], None]) -> None:
    for one in overdue:
        log.warning("job.slot_overdue", job_id=str(one.claim.job_id), attempt=one.claim.attempt)
        try:
            release(one)
        except DatabaseUnavailable as error:
            log.warning("job.not_handed_back", error=str(error))  # its lease runs out, as those of the others
            return
