"""Poll jobs until they are final: fast at first, slower later, tolerant of short outages.

An interrupt is a flag that the loop checks, not an exception: no job is lost between its acceptance and its registration.
"""

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from types import FrameType

from api.cli.client import ClientError, FarmClient, JobBody, JobId
from api.cli.output import note
from shared.vocabulary.states import JobState

FAST_S, FAST_FOR_S, SLOW_S = 0.1, 5.0, 1.0
PATIENCE_S = 30.0
_FINAL = frozenset(str(state) for state in JobState if state.is_final)


class Interrupted:
    """Flag: the user has asked to stop. May be set in a signal handler, unlike threading.Event."""

    def __init__(self) -> None:
        self._asked = False
        self._bell: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        self._asked = True
        self._bell.put(None)

    def is_set(self) -> bool:
        return self._asked

    def wait(self, seconds: float) -> None:
        """Sleep for some seconds, or until the flag is set."""
        with suppress(Empty):
            self._bell.get(timeout=seconds)


@contextmanager
def interruptible() -> Iterator[Interrupted]:
    """Turn the first Ctrl-C or SIGTERM within the block into a flag; the second one interrupts as usual."""
    flag = Interrupted()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        flag.set()
        signal.signal(number, previous[signal.Signals(number)])

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def watch(
    client: FarmClient,
    job_ids: Iterable[JobId],
    *,
    seen: Callable[[JobBody], None],
    interrupted: Interrupted,
    patience_s: float = PATIENCE_S,
) -> list[JobId]:
    """Poll jobs and pass each to `seen`, until all are final. Returns the unfinished ids: none unless interrupted."""
    pending = list(job_ids)
    began = time.monotonic()
    outage = Outage(patience_s)
    while pending and not interrupted.is_set():
        try:
            for job_id in tuple(pending):
                job = client.job(job_id, tries=1)
                outage.over()
                seen(job)
                if is_final(job):
                    pending.remove(job_id)
        except ClientError as error:
            outage.tolerate(error)
        if pending:
            interrupted.wait(pause_s(time.monotonic() - began))
    return pending


class Outage:
    """Tolerates transient errors for a while, and reports an outage once."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._since: float | None = None

    def tolerate(self, error: ClientError) -> None:
        """Record a transient error; raise a permanent one, or one that has lasted too long."""
        if not error.transient:
            raise error
        if self._since is None:
            self._since = time.monotonic()
            note(f"{error}; still trying for {self._patience_s:.0f} s")
        elif time.monotonic() - self._since > self._patience_s:
            raise error

    def over(self) -> None:
        """Record that the farm answers."""
        if self._since is not None:
            note("The farm answers again.")
            self._since = None


def pause_s(waited_s: float) -> float:
    """Return the seconds until the next poll."""
    return min(SLOW_S, FAST_S * max(1.0, waited_s / FAST_FOR_S))


def is_final(job: JobBody) -> bool:
    """Whether a job is final. A state that this client does not know is not."""
    return job["state"] in _FINAL
