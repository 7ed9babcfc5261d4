"""The end of a drain: jobs whose slots do not come back are handed back for them.

A slot hands its job back after the present step, unless the store is silent while the slot writes there: a client's tries take
minutes, and whoever supervises the worker kills it before. Then the job would wait for its lease and count a lost worker.
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
    hand_back: Callable[[RunningJob], None],
    tick_s: Callable[[], float],
    *,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> bool:
    """Wait for the slots of jobs that were told to stop; once the device has rested for `PATIENCE_S`, hand the rest back.

    `tick_s` says for how long the present tick has lasted, 0 between ticks: a step under way is waited for, however long it
    takes. Returns whether every slot came back by itself.
    """
    rested_since = clock()
    while left := running():
        if tick_s() > 0:
            rested_since = clock()
        elif clock() - rested_since >= PATIENCE_S:
            _hand_back(left, hand_back)
            return False
        pause(LOOK_S)
    return True


def _hand_back(left: Sequence[RunningJob], hand_back: Callable[[RunningJob], None]) -> None:
    for one in left:
        log.warning("job.slot_overdue", job_id=str(one.claim.job_id), attempt=one.claim.attempt)
        try:
            hand_back(one)
        except DatabaseUnavailable as error:
            log.warning("job.not_handed_back", error=str(error))  # its lease runs out, as those of the others
            return
