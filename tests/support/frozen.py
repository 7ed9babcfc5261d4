"""Servers that stand still: their processes are stopped, their sockets stay open."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil


def process_of(port: int) -> psutil.Process:
    """Return the process that listens on a port of this machine."""
    pids = {one.pid for one in psutil.net_connections("tcp") if one.status == "LISTEN" and one.laddr.port == port}
    (pid,) = pids
    return psutil.Process(pid)


def freeze(server: psutil.Process) -> list[psutil.Process]:
    """Stop a server and its children; returns what `thaw` takes."""
    server.send_signal(signal.SIGSTOP)  # first: it would make more children
    stopped = [server, *server.children(recursive=True)]
    _send(stopped[1:], signal.SIGSTOP)
    return stopped


def thaw(stopped: list[psutil.Process]) -> None:
    _send(stopped, signal.SIGCONT)


def _send(processes: list[psutil.Process], number: signal.Signals) -> None:
    for one in processes:
        with suppress(psutil.NoSuchProcess):  # a child that was about to end
            one.send_signal(number)


@contextmanager
def frozen(server: psutil.Process) -> Iterator[None]:
    """Stop a server while the block lasts."""
    stopped = freeze(server)
    try:
        yield
    finally:
        thaw(stopped)
