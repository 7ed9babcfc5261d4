"""Supervision of one program: a thread starts it, probes until it is ready, waits for its death, and restarts it with backoff.

Each child leads its own session, so Ctrl-C reaches only the supervisor; when a child dies, its whole process group is killed.
"""

import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import psutil

from deploy.standalone import leftovers
from deploy.standalone.leftovers import FarmProcess
from deploy.standalone.program import ROOT, Program

ROTATE_AT_BYTES = 10_000_000
PROBE_S, MAX_PROBE_S = 0.05, 1.0
# Of the time that a start has taken so far: most probes are requests, and one of ten seconds need not answer two hundred.
PROBE_SHARE = 0.05
TAIL_LINES = 5
TAIL_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Restarts:
    """Backoff of restarts: at once, then after `pauses_s`; every `slow_s` once a child dies too often within `window_s`."""

    pauses_s: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0)
    window_s: float = 60.0
    slow_s: float = 30.0

    @property
    def limit(self) -> int:
        """Number of deaths within the window from which restarts are slow."""
        return len(self.pauses_s) + 1

    def pause(self, deaths: int) -> float:
        """Return the pause before the next start, given the deaths in the window."""
        return self.pauses_s[deaths - 1] if deaths < self.limit else self.slow_s


@dataclass(frozen=True, slots=True)
class Event:
    """Change in a child's state, as one line for people, with the end of its log where that helps.

    After `died` and `failing` the child is restarted. `ended` is final: it never became ready, or was a one-shot that failed.
    """

    kind: Literal["started", "ready", "died", "failing", "ended"]
    name: str
    line: str
    tail: tuple[str, ...] = ()


class Child:
    """A program and the thread that keeps it running. That thread calls `on_event`."""

    def __init__(self, program: Program, log: Path, restarts: Restarts, on_event: Callable[[Event], None]) -> None:
        self.program = program
        self.log = log
        self._restarts = restarts
        self._on_event = on_event
        self._lock = threading.Lock()  # guards _process and _stopping: a stop never misses a start
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._deaths: deque[float] = deque(maxlen=restarts.limit)
        self._thread = threading.Thread(target=self._keep, name=f"keep-{program.name}", daemon=True)

    def start(self) -> None:
        """Start the thread, and with it the program."""
        self._thread.start()

    def running(self) -> FarmProcess | None:
        """Return the run file's entry of the process, by which a later farm finds it; None while there is none."""
        with self._lock, suppress(psutil.Error, OSError):
            if self._process is not None:
                pid = self._process.pid
                return FarmProcess(self.program.name, pid, leftovers.born(pid), int(self.program.stop_signal))
        return None

    def stop(self) -> None:
        """Send the stop signal and stop restarting; returns at once."""
        with self._lock:
            self._stopping.set()
            if self._process is not None:
                self._process.send_signal(self.program.stop_signal)

    def kill(self) -> None:
        """Kill the program with all its descendants."""
        with self._lock:
            self._stopping.set()
            pid = self._process.pid if self._process is not None else None
        with suppress(psutil.Error):
            for process in leftovers.tree(psutil.Process(pid)) if pid is not None else ():
                with suppress(psutil.Error):
                    process.kill()

    def join(self, timeout_s: float) -> bool:
        """Wait until the program has ended for good; False after `timeout_s`. True if it was never started."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def tail(self) -> tuple[str, ...]:
        """Return the last lines of the log."""
        with suppress(OSError), self.log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
            return tuple(line.strip() for line in lines if line.strip())[-TAIL_LINES:]
        return ()

    def _keep(self) -> None:
        served = False
        while not self._stopping.is_set():
            error = self._spawn()
            ready = error is None and self._until_ready()
            served = served or ready
            status = error or self._until_dead()
            if self._stopping.is_set():
                return
            if not served or self.program.once:
                self._end(status)
                return
            self._stopping.wait(self._record_death(status))

    def _spawn(self) -> str | None:
        """Start the program; return the error as a phrase if it cannot be started."""
        program = self.program
        with self._lock:
            if self._stopping.is_set():
                return None
            try:
                program.before()
                with _opened_log(self.log) as log:
                    self._process = _popen(program, log)
            except OSError as error:
                return f"could not be started: {error}"
        self._on_event(Event("started", program.name, f"{program.name} started"))
        return None

    def _until_ready(self) -> bool:
        """Probe until the program is ready; False when it died or is stopped first."""
        process, program, began = self._process, self.program, time.monotonic()
        while process is not None and not program.once and process.poll() is None and not self._stopping.is_set():
            if program.ready():
                self._on_event(Event("ready", program.name, f"{program.name} ready"))
                return True
            taken_s = time.monotonic() - began
            self._stopping.wait(min(max(PROBE_S, PROBE_SHARE * taken_s), MAX_PROBE_S))
        return False

    def _until_dead(self) -> str:
        process = self._process
        if process is None:
            return "was not started"
        code = process.wait()
        with self._lock:
            self._process = None
        # What the leader started must not outlive it: a worker's beat process would tick on for ever.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        return exit_status(code)

    def _end(self, status: str) -> None:
        kind: Literal["ready", "ended"] = "ready" if self.program.once and status == exit_status(0) else "ended"
        self._on_event(Event(kind, self.program.name, f"{self.program.name} {status}", self.tail()))

    def _record_death(self, status: str) -> float:
        """Report a death; return the seconds to wait before the next start."""
        now = time.monotonic()
        self._deaths.append(now)
        recent = sum(now - death < self._restarts.window_s for death in self._deaths)
        pause = self._restarts.pause(recent)
        name = self.program.name
        if recent < self._restarts.limit:
            self._on_event(Event("died", name, f"{name} {status}; starting it again"))
        else:
            line = f"{name} keeps dying ({status}); trying again every {pause:.0f} s. Its log: {self.log}"
            self._on_event(Event("failing", name, line, self.tail()))
        return pause


def _popen(program: Program, log: BinaryIO) -> subprocess.Popen[bytes]:
    account = program.account
    return subprocess.Popen(
        program.argv,
        env=dict(program.env),
        cwd="/" if account else ROOT,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )


def _opened_log(file: Path) -> BinaryIO:
    with suppress(FileNotFoundError):
        if file.stat().st_size > ROTATE_AT_BYTES:
            file.replace(file.with_suffix(".log.1"))
    return file.open("ab")


def exit_status(code: int) -> str:
    """Return how a process ended, as a phrase."""
    if code >= 0:
        return f"exited with status {code}"
    return f"was killed by {signal.Signals(-code).name}"
