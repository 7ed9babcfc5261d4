"""Supervisor of programs in stages: a stage starts once the one before is ready, and all stop in reverse order.

No process outlives the farm: `stop` ends all; if the supervisor dies before that, its guard process does; if the guard dies as
well, the next supervisor on the same folder does (see `leftovers`).
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

from deploy.standalone import leftovers
from deploy.standalone.child import Child, Event, Restarts
from deploy.standalone.program import Program, StartFailed

KILL_WAIT_S = 10.0


class Supervisor:
    """Keeps programs running within a `with` block. Calls `on_event` from the children's threads."""

    def __init__(
        self,
        logs: Path,
        run_file: Path,
        on_event: Callable[[Event], None] = lambda _event: None,
        restarts: Restarts | None = None,
    ) -> None:
        self._logs = logs
        self._run_file = run_file
        self._on_event = on_event
        self._restarts = restarts or Restarts()
        self._stages: list[Sequence[Child]] = []
        self._mail: SimpleQueue[Event] = SimpleQueue()
        self._recording = threading.Lock()
        self._hurry = threading.Event()
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        leftovers.stop(self._run_file)
        self._record()
        self._guard = self._start_guard()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, *programs: Program) -> None:
        """Start a stage; return when all of it is ready. Raises `StartFailed`, with the log's path, for a program that is not."""
        stage = [Child(program, self._logs / f"{program.name}.log", self._restarts, self._hear) for program in programs]
        self._stages.append(stage)
        for child in stage:
            child.start()
        now = time.monotonic()
        waiting = {child.program.name: (now + child.program.ready_within_s, child) for child in stage}
        while waiting:
            deadline, slowest = min(waiting.values(), key=lambda entry: entry[0])
            event = self._next_event(deadline)
            if event is None:
                raise StartFailed(_explain(slowest, f"{slowest.program.name} was not ready in time", slowest.tail()))
            if event.name in waiting and event.kind == "ended":
                raise StartFailed(_explain(waiting[event.name][1], event.line, event.tail))
            if event.kind == "ready":
                waiting.pop(event.name, None)

    def pids(self) -> dict[str, int]:
        """Return the pids of the running programs by name."""
        return {entry.name: entry.pid for stage in self._stages for child in stage if (entry := child.running())}

    def stop(self) -> None:
        """Stop every stage, last started first, and the guard. Calling it again is fine."""
        while self._stages:
            self._stop_stage(self._stages[-1])
            self._stages.pop()
        if self._guard is not None:
            self._run_file.unlink(missing_ok=True)
            self._guard.communicate()
            self._guard = None

    def hurry(self) -> None:
        """Make the present or next `stop` kill instead of wait. Safe in a signal handler."""
        self._hurry.set()

    def _hear(self, event: Event) -> None:
        if event.kind in {"started", "died", "failing"}:
            # On a full disk the record grows old; the part must start again all the same.
            with suppress(OSError):
                self._record()
        self._on_event(event)
        if event.kind in {"ready", "ended"}:
            self._mail.put(event)

    def _next_event(self, deadline: float) -> Event | None:
        with suppress(Empty):
            return self._mail.get(timeout=max(0.0, deadline - time.monotonic()))
        return None

    def _record(self) -> None:
        with self._recording:
            running = [entry for stage in self._stages for child in stage if (entry := child.running())]
            leftovers.record(self._run_file, os.getpid(), running)

    def _start_guard(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", leftovers.__file__, str(self._run_file), str(os.getpid())]
        with (self._logs / "guard.log").open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, cwd="/", start_new_session=True
            )

    def _stop_stage(self, stage: Sequence[Child]) -> None:
        for child in stage:
            child.stop()
        began = time.monotonic()
        for child in stage:
            while not child.join(0.05):
                if self._hurry.is_set() or time.monotonic() - began > child.program.grace_s:
                    child.kill()
                    child.join(KILL_WAIT_S)
                    break


def _explain(child: Child, what: str, tail: Sequence[str]) -> str:
    last = f" Its last line: {tail[-1]}" if tail else ""
    return f"{what}.{last} Its log: {child.log}"
