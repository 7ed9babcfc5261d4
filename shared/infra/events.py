"""Job events over Redis pub/sub, and the wish that workers look through their folders. Best effort.

The row is the truth, and every listener also reads it; workers look through their folders anyway, now and then.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from threading import Event as Flag
from threading import Thread
from typing import Any
from uuid import UUID

import structlog
from redis import Redis
from redis.exceptions import RedisError

from shared.infra.redis_faults import explained
from shared.vocabulary.states import JobState

CHANNEL = "farm:events"
# A channel of its own: a listener of an earlier release reads jobs in whatever comes on the other.
RESCAN_CHANNEL = "farm:rescan"
_RECONNECT_SECONDS = 1.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class JobEvent:
    """A job's new state, at a version of its row; or, with `steps_done`, its progress in an unchanged state."""

    job_id: UUID
    state: JobState
    version: int | None = None
    steps_done: int | None = None
    steps_total: int | None = None

    @property
    def is_progress(self) -> bool:
        """Whether the state is the same as before."""
        return self.steps_done is not None


def publish(redis: Redis, *events: JobEvent) -> None:
    """Publish events in one message, none in none. When Redis does not answer they are lost and logged; nothing is raised."""
    if not events:
        return
    try:
        redis.publish(CHANNEL, json.dumps([asdict(event) for event in events], default=str))
    except RedisError as error:
        log.warning("event.lost", job_ids=[str(event.job_id) for event in events[:10]], **explained(error).log_fields)


def ask_rescan(redis: Redis) -> None:
    """Ask all workers to look through their folders now. When Redis does not answer that is logged; nothing is raised."""
    try:
        redis.publish(RESCAN_CHANNEL, "")
    except RedisError as error:
        log.warning("rescan.unheard", **explained(error).log_fields)


def parse(text: str) -> list[JobEvent]:
    """Parse a message of `publish`."""
    return [_event(fields) for fields in json.loads(text)]


class Listener:
    """Subscriber thread: calls `hear` with every event, and reconnects when Redis comes back.

    With `rescan` it calls that whenever someone asks workers to look through their folders; it must return at once.
    """

    def __init__(
        self, redis: Redis, hear: Callable[[JobEvent], None], *, rescan: Callable[[], None] | None = None
    ) -> None:
        self._redis = redis
        self._hear = hear
        self._rescan = rescan
        self._stopped = Flag()
        self._thread = Thread(target=self._run, name="events", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop listening and wait for the thread."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._listen()
            except (RedisError, OSError) as error:
                log.warning("events.disconnected", **explained(error).log_fields)
            except Exception:  # a message that cannot be read must not deafen the process
                log.exception("events.crashed")
            self._stopped.wait(_RECONNECT_SECONDS)

    def _listen(self) -> None:
        with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:  # type: ignore[no-untyped-call]
            pubsub.subscribe(CHANNEL, *([RESCAN_CHANNEL] if self._rescan else []))
            while not self._stopped.is_set():
                message = pubsub.get_message(timeout=1.0)
                if message is not None:
                    self._heard(message["channel"], message["data"])

    def _heard(self, channel: str, text: str) -> None:
        if self._rescan and channel == RESCAN_CHANNEL:
            self._rescan()
            return
        for event in parse(text):
            self._hear(event)


def _event(fields: dict[str, Any]) -> JobEvent:
    return JobEvent(
        UUID(fields["job_id"]),
        JobState(fields["state"]),
        fields["version"],
        fields["steps_done"],
        fields["steps_total"],
    )
