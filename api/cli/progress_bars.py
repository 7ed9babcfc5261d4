"""Progress of jobs and of files: one live bar each on a terminal, else one line per change.

On stderr, so that stdout has results only.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from api.cli.client import JobBody, JobId
from api.cli.output import note, shortened

Show: TypeAlias = Callable[[JobBody], None]
Advance: TypeAlias = Callable[[int], None]


@contextmanager
def bars() -> Iterator[Show]:
    """Yield a function that displays the progress of a job."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    with _progress() as progress:
        yield _Bars(progress)


@contextmanager
def meter(verb: str, total: int, begin: int = 0) -> Iterator[Advance]:
    """Show the bytes that are done: a progress bar on a terminal, else one line."""
    if not sys.stderr.isatty():
        note(f"{verb} {total - begin} of {total} bytes")
        yield lambda _count: None
        return
    columns = (TextColumn(verb), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), redirect_stdout=False) as progress:
        task = progress.add_task(verb, total=total, completed=begin)
        yield lambda count: progress.advance(task, count)


def steps(job: JobBody) -> tuple[int, int]:
    """Return the steps done and the total steps."""
    progress = job["progress"]
    return int(progress.get("steps_done") or 0), int(progress.get("steps_total") or 0)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("step {task.completed:.0f}/{task.total:.0f}", markup=False),
        TextColumn("{task.fields[state]}", markup=False),
        TimeElapsedColumn(),
        console=Console(file=sys.stderr),
        # What is printed beside the bars stays where it belongs: results are not redirected to stderr.
        redirect_stdout=False,
    )


class _Bars:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[JobId, TaskID] = {}

    def __call__(self, job: JobBody) -> None:
        done, total = steps(job)
        if job["id"] not in self._tasks:
            name = shortened(str(job.get("params", {}).get("prompt", job["id"])), 32)
            self._tasks[job["id"]] = self._progress.add_task(f"{name:<32}", total=total, state=job["state"])
        self._progress.update(self._tasks[job["id"]], completed=done, total=total, state=job["state"])


class _Lines:
    """Prints a line per change of state and per quarter of the steps."""

    def __init__(self) -> None:
        self._printed: dict[JobId, tuple[str, int]] = {}

    def __call__(self, job: JobBody) -> None:
        done, total = steps(job)
        milestone = (job["state"], 4 * done // max(total, 1))
        if self._printed.get(job["id"]) != milestone:
            self._printed[job["id"]] = milestone
            note(f"{job['id']} {job['state']} step {done}/{total}")
