"""Shows running jobs as they take shape: live previews from the engine, made small and put where clients look."""

from collections.abc import Callable, Iterable

from redis import Redis

from shared import previews
from worker.diffusion.preview import to_jpeg
from worker.leases import Running


class Showing:
    """Renews the previews of all running jobs whenever it is called."""

    def __init__(self, redis: Redis, running: Callable[[], Iterable[Running]]) -> None:
        self._redis = redis
        self._running = running

    def renew(self) -> None:
        """Show what has been made since the last time and ask the engine for more."""
        for running in self._running():
            for index, request in enumerate(list(running.requests)):
                if not request.is_done and (pixels := request.take_preview()) is not None:
                    previews.put(self._redis, running.claim.job_id, index, to_jpeg(pixels))
