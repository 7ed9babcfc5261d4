"""Memory of a process over time."""

import threading
from contextlib import suppress

import psutil

MIB = 2**20
EVERY_S = 0.05


class Memory:
    """Watches how much memory a process holds, while it lives."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.peak_mib = 0.0

    def now_mib(self) -> float:
        return float(self._process.memory_info().rss / MIB)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while self._process.is_running() and not self._done.wait(EVERY_S):
            with suppress(psutil.NoSuchProcess):
                self.peak_mib = max(self.peak_mib, self.now_mib())
