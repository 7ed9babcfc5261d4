"""Server-sent events of one job, resumed after the last event received when a connection breaks. Does no I/O."""

import time
from collections.abc import Callable
from typing import TypeAlias

from httpx_sse import ServerSentEvent
from pydantic import ValidationError

from api.client import problems
from api.client.problems import ClientError
from api.client.sans_io import MAX_RETRY_AFTER_S, PATIENCE_S, HttpRequest, job_path
from shared.jobs.wire import Job, Preview, Steps

StreamEvent: TypeAlias = Job | Steps | Preview

_KINDS: dict[str, type[StreamEvent]] = {"state": Job, "progress": Steps, "preview": Preview}
RECONNECT_S = 1.0


class EventStream:
    """State of one subscription: the last event id, and since when the farm is silent."""

    def __init__(self, job_id: str, *, previews: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = f"{job_path(job_id)}/events"
        self._params = {"previews": "true"} if previews else None
        self._clock = clock
        self._last_id = ""
        self._silent_since: float | None = None
        self.is_over = False

    def request(self) -> HttpRequest:
        """Return the request for the events after the last one received."""
        headers = {"Last-Event-ID": self._last_id} if self._last_id else {}
        return HttpRequest("GET", self._path, params=self._params, headers={"Accept": "text/event-stream", **headers})

    def receive(self, event: ServerSentEvent) -> StreamEvent | None:
        """Parse an event; None for a kind that this client does not know. Raises `ClientError`."""
        self._silent_since = None
        self._last_id = event.id or self._last_id
        kind = _KINDS.get(event.event)
        if kind is None:
            return None
        try:
            received = kind.model_validate_json(event.data)
        except ValidationError as error:
            raise problems.unreadable(error, event.event) from error
        self.is_over = isinstance(received, Job) and received.state.is_final
        return received

    def backoff_s(self, error: ClientError | None = None) -> float:
        """Return the seconds to wait before reconnecting. Raises `error` if it is permanent or has lasted `PATIENCE_S`."""
        now = self._clock()
        self._silent_since = now if self._silent_since is None else self._silent_since
        if error is None:
            return RECONNECT_S
        if not error.transient or now - self._silent_since >= PATIENCE_S:
            raise error
        return min(error.retry_after_s or RECONNECT_S, MAX_RETRY_AFTER_S)
