"""Cleanup of the processes that a dead farm left running; as a script, the guard process that waits for the farm's death.

The run file names processes by pid and start time, so another program that got a recycled pid is never touched. This file
imports nothing of the farm: the guard runs it by path, in isolated mode.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

GRACE_S = 5.0
POLL_S = 0.02


class FarmProcess(NamedTuple):
    """A process that the farm started: the leader of its own session and process group."""

    name: str
    pid: int
    born: str
    stop_signal: int


def record(file: Path, farm: int, running: Sequence[FarmProcess]) -> None:
    """Replace the run file atomically."""
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps({"farm": farm, "running": running}))
    fresh.replace(file)


def stop(file: Path, *, farm: int | None = None, grace_s: float = GRACE_S) -> list[str]:
    """Stop the processes of the run file, last started first; return their names. With `farm`, only a run of that process."""
    try:
        run = json.loads(file.read_text())
        running = [FarmProcess(*entry) for entry in run["running"]]
    except (OSError, ValueError, TypeError, KeyError):
        return []
    if farm is not None and run["farm"] != farm:
        return []
    alive = [(entry, process) for entry in reversed(running) if (process := _alive(entry))]
    members = [process for _, leader in alive for process in tree(leader)]
    for entry, leader in alive:
        with suppress(psutil.Error):
            leader.send_signal(entry.stop_signal)
    wait_gone([leader for _, leader in alive], grace_s)
    for process in wait_gone(members, 0):
        with suppress(psutil.Error):
            process.kill()
    wait_gone(members, grace_s)
    return [entry.name for entry, _ in alive]


def tree(leader: psutil.Process) -> list[psutil.Process]:
    """Return a process with its descendants and the members of its group, whatever sessions they have moved to."""
    members = {leader}
    with suppress(psutil.Error):
        members.update(leader.children(recursive=True))
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == leader.pid:
                members.add(process)
    return list(members)


def wait_gone(processes: Sequence[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Wait for processes to end; return those that have not. A zombie counts as ended: its parent may be slow to reap it."""
    deadline = time.monotonic() + timeout_s
    remaining = [process for process in processes if _lives(process)]
    while remaining and time.monotonic() < deadline:
        time.sleep(POLL_S)
        remaining = [process for process in remaining if _lives(process)]
    return remaining


def born(pid: int) -> str:
    """Return a process's start time as boot id and tick, which tells apart two processes with one pid.

    psutil's create_time moves when the clock is set, so that the same process may seem another; ticks do not move.
    """
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return str(psutil.Process(pid).create_time())
    after_command = stat.read_text(errors="replace").rpartition(")")[2].split()
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {after_command[19]}"


def _alive(entry: FarmProcess) -> psutil.Process | None:
    with suppress(psutil.Error, OSError):
        process = psutil.Process(entry.pid)
        if born(entry.pid) == entry.born and _lives(process):
            return process
    return None


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _guard(file: Path, farm: int) -> None:
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    # The farm holds the other end and never writes: the read returns when the farm is gone, however it went.
    sys.stdin.buffer.read()
    # By now a later farm may run on the same folder; its run file names another pid.
    stop(file, farm=farm)


if __name__ == "__main__":
    _guard(Path(sys.argv[1]), int(sys.argv[2]))
