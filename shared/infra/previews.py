"""Live previews of running jobs, in Redis for a few seconds. Best effort: the next one replaces a lost one."""

from uuid import UUID

import structlog
from redis import Redis
from redis.exceptions import RedisError

from shared.infra.redis_faults import explained

JPEG = "image/jpeg"
KEPT_S = 15

log = structlog.get_logger(__name__)


def put(redis: Redis, job_id: UUID, index: int, jpeg: bytes) -> None:
    """Store a preview for `KEPT_S` seconds, replacing the last one. `redis` may decode its responses or not."""
    try:
        redis.set(_key(job_id, index), jpeg, ex=KEPT_S)
    except RedisError as error:
        log.warning("preview.lost", job_id=str(job_id), **explained(error).log_fields)


def get(redis: Redis, job_id: UUID, index: int) -> bytes | None:
    """Return the latest preview, None when there is none. Raises `BrokerUnavailable`."""
    try:
        # The client decodes text, which a JPEG is not; Redis returns it as the bytes that it is under this option.
        return redis.execute_command("GET", _key(job_id, index), NEVER_DECODE=True)  # type: ignore[no-any-return, no-untyped-call]
    except RedisError as error:
        raise explained(error) from error


def _key(job_id: UUID, index: int) -> str:
    return f"farm:preview:{job_id}:{index}"
