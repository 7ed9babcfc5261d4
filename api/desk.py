"""The `Desk`: connections and shared state of an api process, and the FastAPI dependencies that hand it to routes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from celery import Celery
from fastapi import Depends, Path, Request
from redis import Redis

from api.auth.key_cache import KeyCache
from api.limits.quota import Quota
from api.limits.rate import RateLimit
from api.limits.streams import StreamLimit
from api.picture_intake import PictureIntake
from api.waiting.job_updates import JobUpdates
from shared.errors import JobNotFound
from shared.infra import broker
from shared.infra.db import Database
from shared.infra.outbound_http import OutboundHttp
from shared.infra.storage import Storage
from shared.settings import Settings


@dataclass(frozen=True, slots=True)
class Desk:
    """Connections and shared state. Opened without connecting: a dependency that is down must not keep the api from starting."""

    settings: Settings
    db: Database
    redis: Redis
    celery: Celery
    storage: Storage
    intake: PictureIntake
    keys: KeyCache
    throttle: RateLimit
    quota: Quota
    updates: JobUpdates
    streams: StreamLimit


@contextmanager
def open_desk(settings: Settings) -> Iterator[Desk]:
    """Open the desk, and close its connections on exit."""
    with ExitStack() as closing:
        db = Database(settings, pool_size=20)
        closing.callback(db.close)
        redis = broker.connect(settings)
        closing.callback(redis.close)
        celery = broker.celery_app(settings)
        closing.callback(celery.close)
        yield Desk(
            settings,
            db,
            redis,
            celery,
            Storage(settings),
            _intake(settings),
            KeyCache(db),
            RateLimit(redis),
            Quota(settings.max_queued),
            JobUpdates(db, broker.connect_async(settings)),
            StreamLimit(),
        )


def _intake(settings: Settings) -> PictureIntake:
    outside = OutboundHttp(allow_private=settings.allow_private_urls)
    return PictureIntake(outside, max_bytes=settings.max_body_bytes, fetch_s=settings.fetch_seconds)


async def _desk(request: Request) -> Desk:  # async saves every request a trip through the thread pool
    desk: Desk = request.app.state.desk
    return desk


def _job_id(
    job_id: Annotated[str, Path(description="The job's id.", examples=["0198c0de-0000-7000-8000-000000000001"])],
) -> UUID:
    # Whatever is not an id was never a job's id: 404 for both, so that clients have one case to handle.
    try:
        return UUID(job_id)
    except ValueError:
        raise JobNotFound(f"There is no job {job_id[:64]!r}.") from None


DeskDep = Annotated[Desk, Depends(_desk)]
JobId = Annotated[UUID, Depends(_job_id)]
