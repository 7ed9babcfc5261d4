"""The `Desk`: connections and shared state of an api process, and the FastAPI dependencies that hand it to routes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated
from uuid import UUID

import structlog
from celery import Celery
from fastapi import Depends, Path, Request
from redis import Redis

from api.annex.process import Annex
from api.auth.key_cache import KeyCache
from api.doorbells import Doorbells
from api.limits.crowds import Crowds
from api.limits.loop_turns import LoopTurns
from api.limits.memory import Memory
from api.limits.quota import Quota
from api.limits.rate import TOKEN_COUNTS, RateLimit
from api.limits.streams import StreamLimit
from api.limits.workrooms import Workrooms
from api.picture_intake import PictureIntake
from api.readiness import Dependencies
from api.waiting.job_updates import JobUpdates
from shared.errors import JobNotFound, TooBusy
from shared.infra import broker, events
from shared.infra.db import Database
from shared.infra.events import JobEvent
from shared.infra.outbound_http import OutboundHttp
from shared.infra.storage import Storage
from shared.settings import Settings

log = structlog.get_logger(__name__)

# Clients wait for the api's transactions: after 10 s, with what connecting may take, they have their 503.
PATIENCE_S = 7.0
# And for its calls to the storage: they fail within 9 s, pauses included.
STORAGE_TRIES, STORAGE_S = 2, 4.0
# Memory in which all large answers together are made: pictures, sheets and zips on their way to clients.
ANSWERS_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Desk:
    """Connections and shared state. Opened without connecting: a dependency that is down must not keep the api from starting."""

    settings: Settings
    rooms: Workrooms
    db: Database
    redis: Redis
    celery: Celery
    storage: Storage
    annex: Annex
    intake: PictureIntake
    keys: KeyCache
    throttle: RateLimit
    quota: Quota
    updates: JobUpdates
    streams: StreamLimit
    dependencies: Dependencies
    answers: Memory
    turns: LoopTurns
    doorbells: Doorbells

    async def tell(self, owner: str, *news: JobEvent) -> None:
        """Publish events for an owner. Best effort: who waits for them looks at the rows, too."""
        try:
            await self.rooms.redis.run(owner, events.publish, self.redis, *news)
        except TooBusy as error:
            log.warning("event.lost", job_ids=[str(event.job_id) for event in news[:10]], error=str(error))


@contextmanager
def open_desk(settings: Settings) -> Iterator[Desk]:
    """Open the desk, and close its connections on exit."""
    with ExitStack() as closing:
        db = Database(settings, pool_size=20, patience_s=PATIENCE_S)
        closing.callback(db.close)
        redis = broker.connect(settings, hasty=True)
        closing.callback(redis.close)
        celery = broker.celery_app(settings, hasty=True)
        closing.callback(celery.close)
        throttle = RateLimit(broker.connect_async(settings, hasty=True))
        crowds = Crowds()
        rooms = Workrooms.opened(
            spend=throttle.spend, spend_on_counts=partial(throttle.spend, tariff=TOKEN_COUNTS), rest=crowds.rest_s
        )
        closing.callback(rooms.close)
        dependencies = Dependencies(settings)
        closing.callback(dependencies.close)
        doorbells = Doorbells(celery)
        closing.callback(doorbells.close)
        storage = Storage(settings, tries=STORAGE_TRIES, read_s=STORAGE_S)
        annex = Annex(settings, storage, tries=STORAGE_TRIES, read_s=STORAGE_S)
        closing.callback(annex.close)
        yield Desk(
            settings,
            rooms,
            db,
            redis,
            celery,
            storage,
            annex,
            _intake(settings, rooms),
            KeyCache(db),
            throttle,
            Quota(settings.max_queued),
            JobUpdates(db, broker.connect_async(settings), rooms.updates),
            StreamLimit(),
            dependencies,
            Memory(ANSWERS_BYTES),
            LoopTurns(crowds),
            doorbells,
        )


def _intake(settings: Settings, rooms: Workrooms) -> PictureIntake:
    outside = OutboundHttp(allow_private=settings.allow_private_urls)
    return PictureIntake(outside, rooms.decoding, max_bytes=settings.max_body_bytes, fetch_s=settings.fetch_seconds)


async def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


async def _job_id(
    job_id: Annotated[str, Path(description="The job's id.", examples=["0198c0de-0000-7000-8000-000000000001"])],
) -> UUID:
    # Whatever is not an id was never a job's id: 404 for both, so that clients have one case to handle.
    try:
        return UUID(job_id)
    except ValueError:
        raise JobNotFound(f"There is no job {job_id[:64]!r}.") from None


DeskDep = Annotated[Desk, Depends(_desk)]
JobId = Annotated[UUID, Depends(_job_id)]
