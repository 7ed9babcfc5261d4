"""Server-sent events of one job: the whole job at each change of state, its progress between, its final state last.

A stream costs one subscription in the process and no thread. FastAPI writes the events and keep-alive comments, and closes the
generator when the client disconnects.
"""

import base64
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Header, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent
from redis import Redis

from api.callers import Caller, Reader
from api.desk import Desk, DeskDep, JobId
from api.openapi import documented
from api.routing import Router
from api.v1.jobs import visible_row
from shared.errors import BrokerUnavailable, TooBusy
from shared.infra import previews
from shared.infra.events import JobEvent
from shared.infra.tables import JobRow
from shared.jobs.wire import Job, Preview, Steps
from shared.vocabulary.states import JobState

router = Router(prefix="/v1/jobs", tags=["jobs"], responses=documented(401, 403, 422, 429, 503))


async def _stream_slot(job_id: JobId, desk: DeskDep, caller: Reader) -> AsyncIterator[JobRow]:
    # A dependency, because a generator's own errors come after the status has been sent. What follows the yield runs after the
    # stream.
    row = await visible_row(desk, caller, job_id)
    desk.streams.enter(caller.owner)
    try:
        yield row
    finally:
        desk.streams.leave(caller.owner)


@router.get(
    "/{job_id}/events",
    summary="Follow a job",
    response_class=EventSourceResponse,
    responses=documented(404, 410),
)
async def follow(
    job: Annotated[JobRow, Depends(_stream_slot)],
    desk: DeskDep,
    caller: Reader,
    last_event_id: Annotated[
        str | None, Header(max_length=20, description="The `id` of the last event received; older events are skipped.")
    ] = None,
    with_previews: Annotated[
        bool,
        Query(
            alias="previews",
            description="Also send `preview` events with live previews (job_id, index, content_type, base64 data).",
        ),
    ] = False,
) -> AsyncGenerator[ServerSentEvent]:
    """Follow a job by server-sent events: `state` (the Job) now and at each change, `progress` (Steps) between.

    The `id` of an event is the job's version; previews have none. The stream ends after the event of a final state.
    """
    seen = int(last_event_id) if last_event_id and last_event_id.isdecimal() else 0
    new_previews = NewPreviews(desk.redis, job) if with_previews else None
    async with aclosing(desk.updates.subscribe(job.id)) as updates:
        async for update in updates:
            if (update.version or 0) > seen or _is_last(update):
                yield _event(update, job.shown_id)
            if new_previews is not None and not _is_last(update):
                for preview in await _read(desk, caller, new_previews, update):
                    yield ServerSentEvent(event="preview", data=preview)


class NewPreviews:
    """Previews of a job that its stream has not sent yet. Best effort: without Redis there are none."""

    def __init__(self, redis: Redis, job: JobRow) -> None:
        self._redis = redis
        self._job_id, self._shown_id = job.id, job.shown_id
        self._sent: dict[int, bytes | None] = {}

    def after(self, update: JobRow | JobEvent) -> list[Preview]:
        """Return the previews that have changed. The job's row says how many images there are, so it must come first."""
        if isinstance(update, JobRow):
            self._sent = dict.fromkeys(range(update.params["num_images"])) | self._sent
        with suppress(BrokerUnavailable):
            return [preview for index in self._sent if (preview := self._new(index)) is not None]
        return []

    def _new(self, index: int) -> Preview | None:
        jpeg = previews.get(self._redis, self._job_id, index)
        if jpeg is None or jpeg == self._sent[index]:
            return None
        self._sent[index] = jpeg
        return Preview(job_id=self._shown_id, index=index, content_type=previews.JPEG, data=base64.b64encode(jpeg))


async def _read(desk: Desk, caller: Caller, new: NewPreviews, update: JobRow | JobEvent) -> list[Preview]:
    with suppress(TooBusy):
        return await desk.rooms.redis.run(caller.owner, new.after, update)
    return []


def _is_last(update: JobRow | JobEvent) -> bool:
    return isinstance(update, JobRow) and JobState(update.state).is_final


def _event(update: JobRow | JobEvent, job_id: UUID) -> ServerSentEvent:
    if isinstance(update, JobRow):
        return ServerSentEvent(event="state", id=str(update.version), data=Job.of(update))
    steps = Steps(
        job_id=job_id,
        version=update.version or 0,
        steps_done=update.steps_done or 0,
        steps_total=update.steps_total or 0,
    )
    return ServerSentEvent(event="progress", id=str(steps.version), data=steps)
