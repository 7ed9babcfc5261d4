"""A lock between the processes and threads of a machine, on a file that stays where it is.

Of its own, since what is in use is held by several at once. The library `filelock` has such locks only in an SQLite database,
while the file's content and time are ours to use; and it waits for some seconds, not as long as its holder makes progress.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import StorageUnavailable

POLL_S = 0.1
# Whoever holds one for longer than this, and shows no progress, has stalled: each of its requests has a deadline.
STALLED_S = 300.0


class FileLock:
    """A file that is open and may be locked. It is let go when it is closed or forgotten."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Let go."""
        fd, self.fd = getattr(self, "fd", -1), -1
        if fd >= 0:
            os.close(fd)

    def share(self, progress: Callable[[], int]) -> None:
        """Lock it beside others that share it; see `alone`."""
        self._acquire(fcntl.LOCK_SH, progress)

    @contextmanager
    def alone(self, progress: Callable[[], int] = lambda: 0) -> Iterator[None]:
        """Hold it alone within the block. Raises `StorageUnavailable` if its holder makes no `progress` for `STALLED_S`."""
        self._acquire(fcntl.LOCK_EX, progress)
        try:
            yield
        finally:
            self.release()

    def take(self) -> bool:
        """Lock it alone if nobody holds it; whether it is ours."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Unlock it."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def _acquire(self, mode: int, progress: Callable[[], int]) -> None:
        seen, since = progress(), time.monotonic()
        while True:
            try:
                fcntl.flock(self.fd, mode | fcntl.LOCK_NB)
            except BlockingIOError:
                if seen != (seen := progress()):
                    since = time.monotonic()
                if time.monotonic() - since > STALLED_S:
                    raise StorageUnavailable(f"Another process that holds {self._path} has stalled.") from None
                time.sleep(POLL_S)
            else:
                return
