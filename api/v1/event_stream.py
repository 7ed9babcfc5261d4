"""A job's story as server-sent events: its states whole, its progress in between, its end last.

Costs one watch on the process's subscription and no thread. FastAPI writes the events, keep-alive comments, and ends the
generator when the client has gone.
"""

import base64
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent
from redis import Redis
from starlette.concurrency import run_in_threadpool

from api.callers import Reader
from api.desk import DeskDep, JobId
from api.problems import documented
from api.v1.jobs import awaited
from shared.errors import BrokerUnavailable
from shared.infra import previews
from shared.infra.db import JobRow
from shared.infra.events import JobEvent
from shared.jobs.wire import Job, Preview, Steps
from shared.vocabulary.states import JobState

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=documented(401, 403, 422, 429, 503))


async def _followed(job_id: JobId, desk: DeskDep, caller: Reader) -> AsyncIterator[UUID]:
    # A dependency, because a generator's own errors come after the status has been sent. What follows the yield runs after the
    # stream.
    row = await awaited(desk, caller, job_id)
    desk.streams.enter(caller.owner)
    try:
        yield row.id
    finally:
        desk.streams.leave(caller.owner)


@router.get(
    "/{job_id}/events",
    summary="Follow a job",
    response_class=EventSourceResponse,
    responses=documented(404, 410),
)
async def follow(
    job_id: Annotated[UUID, Depends(_followed)],
    desk: DeskDep,
    last_event_id: Annotated[
        str | None, Header(max_length=20, description="The `id` of the last event seen: what is older is left out.")
    ] = None,
    with_previews: Annotated[
        bool,
        Query(
            alias="previews",
            description="Also send `preview` (job_id, index, content_type, data in base64) as images take shape.",
        ),
    ] = False,
) -> AsyncGenerator[ServerSentEvent]:
    """Send `state` (data: the Job) now and at every change, `progress` (job_id, version, steps_done, steps_total) between.

    `id` is the job's version; previews have none. After the event of a final state the stream ends.
    """
    seen = int(last_event_id) if last_event_id and last_event_id.isdecimal() else 0
    looker = Looker(desk.redis, job_id) if with_previews else None
    async with aclosing(desk.waiting.changes(job_id)) as changes:
        async for change in changes:
            if (change.version or 0) > seen or _is_end(change):
                yield _event(change)
            if looker is not None and not _is_end(change):
                for preview in await run_in_threadpool(looker.news, change):
                    yield ServerSentEvent(event="preview", data=preview)


class Looker:
    """Looks for previews that have not been sent yet. They are best effort: without Redis there are none."""

    def __init__(self, redis: Redis, job_id: UUID) -> None:
        self._redis = redis
        self._job_id = job_id
        self._sent: dict[int, bytes | None] = {}

    def news(self, change: JobRow | JobEvent) -> list[Preview]:
        """Return the previews that have changed, of the images that the job's row has told of."""
        if isinstance(change, JobRow):
            self._sent = dict.fromkeys(range(change.params["num_images"])) | self._sent
        with suppress(BrokerUnavailable):
            return [preview for index in self._sent if (preview := self._new(index)) is not None]
        return []

    def _new(self, index: int) -> Preview | None:
        jpeg = previews.get(self._redis, self._job_id, index)
        if jpeg is None or jpeg == self._sent[index]:
            return None
        self._sent[index] = jpeg
        return Preview(job_id=self._job_id, index=index, content_type=previews.JPEG, data=base64.b64encode(jpeg))


def _is_end(change: JobRow | JobEvent) -> bool:
    return isinstance(change, JobRow) and JobState(change.state).is_final


def _event(change: JobRow | JobEvent) -> ServerSentEvent:
    if isinstance(change, JobRow):
        return ServerSentEvent(event="state", id=str(change.version), data=Job.of(change))
    steps = Steps(
        job_id=change.job_id,
        version=change.version or 0,
        steps_done=change.steps_done or 0,
        steps_total=change.steps_total or 0,
    )
    return ServerSentEvent(event="progress", id=str(steps.version), data=steps)
