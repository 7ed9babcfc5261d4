"""Rate limit per key: a leaky bucket of one minute's requests in Redis, shared by all api processes.

A request pays for a share of the api's processors, too. What its work takes beyond that, the owner's next request is charged
with, as if more requests had come. The bucket is one number, the time at which it will be full again (GCRA). While Redis is
down, all requests pass.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Self

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.errors import RateLimited

MINUTE_S = 60.0
# However costly a request was, its key is served again after so long.
MOST_DEBT_S = 600.0
# How long Redis is not asked again after it failed, so that no request waits for its timeout in vain.
AWAY_S = 5.0
ASKED_AT_ONCE = 16
MAX_REMEMBERED = 10_000

# KEYS[1]: the bucket; ARGV: seconds that one request takes to fill up again, seconds from empty to full, requests owed for
# earlier work, seconds of debt at most. Returns 0, or the milliseconds until there is room.
_TAKE = """
local now = redis.call('TIME')
local seconds = now[1] + now[2] / 1e6
local each, window, owed, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local full_at = math.max(tonumber(redis.call('GET', KEYS[1]) or seconds), seconds)
full_at = math.max(full_at, math.min(full_at + each * owed, seconds + window + most))
local wait = full_at + each - window - seconds
if wait <= 1e-6 then full_at, wait = full_at + each, 0 end
if full_at > seconds then
  redis.call('SET', KEYS[1], string.format('%.6f', full_at), 'PX', math.ceil((full_at - seconds) * 1000))
end
return math.ceil(wait * 1000)
"""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Tariff:
    """What is counted, and how many seconds of a processor one of it pays for."""

    what: str
    pays_s: float


REQUESTS = Tariff("requests", 0.1)
TOKEN_COUNTS = Tariff("token counts", 0.02)


class RateLimit:
    """Counts the requests of keys that have a limit. Belongs to one event loop, but for `spend`. An async context manager."""

    def __init__(self, redis: Redis, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis = redis
        self._take = redis.register_script(_TAKE)
        self._clock = clock
        self._asking = asyncio.Semaphore(ASKED_AT_ONCE)
        self._away_until = 0.0
        # Seconds of a processor beyond what has been paid for, by tariff and owner; below zero they are paid ahead.
        self._spent: dict[tuple[Tariff, str], float] = {}
        self._lock = Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def take(self, owner: str, per_minute: int, tariff: Tariff = REQUESTS) -> None:
        """Count one request, and what is owed for earlier ones. Raises `RateLimited`, which carries the seconds to wait."""
        wait_ms = await self._wait_ms(owner, per_minute, tariff)
        if wait_ms:
            self.spend(owner, tariff.pays_s, tariff)  # a refused request has paid for nothing
            detail = f"This API key may make {per_minute} {tariff.what} a minute; costly ones count as several."
            raise RateLimited(detail, retry_after_s=wait_ms / 1000)

    def spend(self, owner: str, seconds: float, tariff: Tariff = REQUESTS) -> None:
        """Note what a request took of the processors. Thread-safe."""
        with self._lock:
            if len(self._spent) >= MAX_REMEMBERED:
                self._spent.clear()
            self._spent[tariff, owner] = self._spent.get((tariff, owner), 0.0) + seconds

    async def _wait_ms(self, owner: str, per_minute: int, tariff: Tariff) -> int:
        async with self._asking:
            if self._clock() < self._away_until:
                return 0
            try:
                return int(
                    await self._take(
                        keys=[f"throttle:{tariff.what}:{owner}"],
                        args=[MINUTE_S / per_minute, MINUTE_S, self._owed(owner, per_minute, tariff), MOST_DEBT_S],
                    )
                )
            except RedisError as error:
                self._away_until = self._clock() + AWAY_S
                log.warning("throttle.off", error=type(error).__name__)
                return 0

    def _owed(self, owner: str, per_minute: int, tariff: Tariff) -> float:
        """Return how many requests the work since the last one is worth, beyond the one that is counted now."""
        with self._lock:
            left_s = self._spent.pop((tariff, owner), 0.0) - tariff.pays_s
            if left_s > 0:
                return left_s / tariff.pays_s
            # Paid ahead for what this request may cost, and for others whose work is still to come: at most a minute's.
            self._spent[tariff, owner] = max(left_s, -per_minute * tariff.pays_s)
            return 0.0
