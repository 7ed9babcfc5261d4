"""Specs of the programs that the supervisor runs: engines, api and workers as `Program` values.

This module starts nothing. An `Account` is the unprivileged user a program runs as when the farm itself runs as root.
"""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM, Signals

from shared.errors import FarmError

# Where `api`, `worker` and `shared` are importable from, wherever the farm was started.
ROOT = Path(__file__).resolve().parents[2]


class StartFailed(FarmError):
    """The farm could not start."""

    code = "start_failed"


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this machine, by numeric ids."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Program:
    """A foreground command line with its readiness probe and stop signal.

    A program with `once` is ready when it has exited with status 0. `before` runs ahead of each start, restarts too.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    ready: Callable[[], bool] = field(default=lambda: True, repr=False)
    ready_within_s: float = 60.0
    once: bool = False
    before: Callable[[], None] = field(default=lambda: None, repr=False)
    stop_signal: Signals = SIGTERM
    grace_s: float = 10.0
    account: Account | None = None


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """An embedded engine: the programs that prepare and run it, in order, and the `FARM_*` variables that point to it."""

    programs: tuple[Program, ...]
    env: Mapping[str, str] = field(repr=False)


def python_module(module: str, *args: str) -> tuple[str, ...]:
    """Return the command line that runs a module with this interpreter."""
    return (sys.executable, "-m", module, *args)


def runs_as_root() -> bool:
    """Whether this process is root and may start programs as other users."""
    return os.geteuid() == 0
