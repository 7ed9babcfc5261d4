"""Waiting for jobs: polling that is quick at first, calm later, and patient with a network that blinks.

An interrupt is a flag that the loop looks at, not an exception: no job is lost between being accepted and being known.
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

QUICK_S, QUICK_FOR_S, CALM_S = 0.1, 5.0, 1.0
PATIENCE_S = 30.0
_FINAL = frozenset(str(state) for state in JobState if state.is_final)


class Interrupted:
    """Set once the user has asked to stop. Safe to set in a signal handler, which threading.Event is not."""

    def __init__(self) -> None:
        self._asked = False
        self._bell: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """Note that the user has asked."""
        self._asked = True
        self._bell.put(None)

    def is_set(self) -> bool:
        """Whether the user has asked."""
        return self._asked

    def wait(self, seconds: float) -> None:
        """Sleep until the user asks, at most so long."""
        with suppress(Empty):
            self._bell.get(timeout=seconds)


@contextmanager
def interruptible() -> Iterator[Interrupted]:
    """Turn the first Ctrl-C (or SIGTERM) into a flag for the block; the second one interrupts as usual."""
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
    """Show every job to `seen` until all are final. Return the ids that are not: none, unless interrupted."""
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
            outage.bear(error)
        if pending:
            interrupted.wait(pause_s(time.monotonic() - began))
    return pending


class Outage:
    """A stretch of failed calls, borne for a while and told about once."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._since: float | None = None

    def bear(self, error: ClientError) -> None:
        """Go on despite an error that may pass; raise one that cannot, or that has lasted too long."""
        if not error.transient:
            raise error
        if self._since is None:
            self._since = time.monotonic()
            note(f"{error}; still trying for {self._patience_s:.0f} s")
        elif time.monotonic() - self._since > self._patience_s:
            raise error

    def over(self) -> None:
        """Note that the farm answers."""
        if self._since is not None:
            note("The farm answers again.")
            self._since = None


def pause_s(waited_s: float) -> float:
    """Return how long to wait before looking again."""
    return min(CALM_S, QUICK_S * max(1.0, waited_s / QUICK_FOR_S))


def is_final(job: JobBody) -> bool:
    """Whether a job will never change again. A state that this client does not know may still change."""
    return job["state"] in _FINAL
