"""Rings doorbells in a thread of its own, so that nobody who submits waits for Redis. Rings that come meanwhile go together."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from celery import Celery

from shared.infra import broker


class Doorbells:
    """The doorbells of an api process. Thread-safe."""

    def __init__(self, celery: Celery) -> None:
        self._celery = celery
        self._due: Counter[str] = Counter()
        self._lock = Lock()
        self._ringer = ThreadPoolExecutor(1, "doorbells")

    def ring(self, checkpoint: str, times: int = 1) -> None:
        """Ring soon. Called after a commit: a worker that hears the doorbell must find the row."""
        with self._lock:
            is_awake = bool(self._due)
            self._due[checkpoint] += times
        if not is_awake:
            self._ringer.submit(self._ring_due)

    def close(self) -> None:
        """Ring what is due, and end."""
        self._ringer.shutdown()

    def _ring_due(self) -> None:
        with self._lock:
            due, self._due = self._due, Counter()
        for checkpoint, times in due.items():
            broker.ring(self._celery, checkpoint, times)
