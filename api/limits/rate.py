"""Rate limit per key: a leaky bucket of one minute's requests in Redis, shared by all api processes.

The bucket is one number, the time at which it will be full again (GCRA). While Redis is down, all requests pass.
"""

import time
from collections.abc import Callable

import structlog
from redis import Redis
from redis.exceptions import RedisError

from shared.errors import RateLimited

MINUTE_S = 60.0
# How long Redis is not asked again after it failed, so that no request waits for its timeout in vain.
AWAY_S = 5.0

# KEYS[1]: the bucket; ARGV: seconds that one request takes to fill up again, seconds from empty to full.
# Returns 0, or the milliseconds until there is room.
_TAKE = """
local now = redis.call('TIME')
local seconds = now[1] + now[2] / 1e6
local each, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local full_at = math.max(tonumber(redis.call('GET', KEYS[1]) or seconds), seconds) + each
local wait = full_at - window - seconds
if wait > 1e-6 then return math.ceil(wait * 1000) end
redis.call('SET', KEYS[1], string.format('%.6f', full_at), 'PX', math.ceil((full_at - seconds) * 1000))
return 0
"""

log = structlog.get_logger(__name__)


class RateLimit:
    """Counts the requests of keys that have a limit. Thread-safe."""

    def __init__(self, redis: Redis, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._take = redis.register_script(_TAKE)
        self._clock = clock
        self._away_until = 0.0

    def take(self, owner: str, per_minute: int, *, what: str = "requests") -> None:
        """Count one request in the bucket `what` of an owner. Raises `RateLimited`, which carries the seconds to wait."""
        if self._clock() < self._away_until:
            return
        try:
            each_s = MINUTE_S / per_minute
            wait_ms = int(self._take(keys=[f"throttle:{what}:{owner}"], args=[each_s, MINUTE_S]))
        except RedisError as error:
            self._away_until = self._clock() + AWAY_S
            log.warning("throttle.off", error=type(error).__name__)
            return
        if wait_ms:
            detail = f"This API key may make {per_minute} {what} a minute."
            raise RateLimited(detail, retry_after_s=wait_ms / 1000)
