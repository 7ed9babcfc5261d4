"""A job's story as the farm tells it, event by event, taken up again after the last event heard where a connection breaks."""

import time
from collections.abc import Callable
from typing import TypeAlias

from httpx_sse import ServerSentEvent
from pydantic import ValidationError

from api.client import problems
from api.client.problems import ClientError
from api.client.sans_io import MAX_RETRY_AFTER_S, PATIENCE_S, HttpRequest, job_path
from shared.jobs.wire import Job, Preview, Steps

News: TypeAlias = Job | Steps | Preview

_KINDS: dict[str, type[News]] = {"state": Job, "progress": Steps, "preview": Preview}
AGAIN_S = 1.0


class EventStream:
    """What has been heard of one job, and how to hear the rest."""

    def __init__(self, job_id: str, *, previews: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = f"{job_path(job_id)}/events"
        self._params = {"previews": "true"} if previews else None
        self._clock = clock
        self._last_id = ""
        self._silent_since: float | None = None
        self.is_over = False

    def call(self) -> HttpRequest:
        """Return the request that tells what has not been heard."""
        headers = {"Last-Event-ID": self._last_id} if self._last_id else {}
        return HttpRequest("GET", self._path, params=self._params, headers={"Accept": "text/event-stream", **headers})

    def heard(self, event: ServerSentEvent) -> News | None:
        """Return what an event tells, None for a kind that this client does not know."""
        self._silent_since = None
        self._last_id = event.id or self._last_id
        kind = _KINDS.get(event.event)
        if kind is None:
            return None
        try:
            news = kind.model_validate_json(event.data)
        except ValidationError as error:
            raise problems.unreadable(error, event.event) from error
        self.is_over = isinstance(news, Job) and news.state.is_final
        return news

    def broke(self, error: ClientError | None = None) -> float:
        """Return the seconds to let pass before asking again. Raises an error that does not pass, or has not for a minute."""
        now = self._clock()
        self._silent_since = now if self._silent_since is None else self._silent_since
        if error is None:
            return AGAIN_S
        if not error.transient or now - self._silent_since >= PATIENCE_S:
            raise error
        return min(error.retry_after_s or AGAIN_S, MAX_RETRY_AFTER_S)
