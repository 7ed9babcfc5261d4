"""A supervisor's events to wait for, and small programs for it to keep."""

import os
import sys
from pathlib import Path
from queue import SimpleQueue

from deploy.standalone.child import Event
from deploy.standalone.program import Program
from tests.support.waiting import LIMIT_S

# Prints its own pid and that of a grandchild to a file, in one move, then waits.
FAMILY = """
import os, pathlib, signal, subprocess, sys
if "stubborn" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
sleeper = subprocess.Popen(["sleep", "600"], start_new_session="detached" in sys.argv)
pids = pathlib.Path(sys.argv[1])
pids.with_suffix(".new").write_text(f"{os.getpid()} {sleeper.pid}")
pids.with_suffix(".new").replace(pids)
while True: signal.pause()
"""


class Heard:
    """What a supervisor told, to be waited for in order."""

    def __init__(self) -> None:
        self._events: SimpleQueue[Event] = SimpleQueue()

    def __call__(self, event: Event) -> None:
        self._events.put(event)

    def next(self, kind: str, name: str) -> Event:
        while True:
            event = self._events.get(timeout=LIMIT_S)
            if (event.kind, event.name) == (kind, name):
                return event


def python(name: str, code: str, *args: str, **fields: object) -> Program:
    return Program(name=name, argv=(sys.executable, "-c", code, *args), env=dict(os.environ), **fields)  # type: ignore[arg-type]


def family(folder: Path, *flags: str, name: str = "family", **fields: object) -> Program:
    pids = folder / f"{name}.pids"
    return python(
        name, FAMILY, str(pids), *flags, before=lambda: pids.unlink(missing_ok=True), ready=pids.exists, **fields
    )
