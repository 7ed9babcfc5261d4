"""An engine that hangs, with a crowd waiting for it: all else goes on, and what needs the engine is refused before long."""

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
import pytest
from redis import Redis

from api import desk
from api.auth import keys
from api.auth.keys import NewKey, Scope
from api.limits import workrooms
from shared.infra.db import Database
from shared.infra.storage import Storage, image_key
from shared.jobs import lifecycle
from shared.jobs.lifecycle import FinishedImage
from shared.settings import Settings
from tests.support import jobs
from tests.support.factories import BODY, png
from tests.support.freezing import frozen
from tests.support.waiting import LIMIT_S
from tests.support.workshop import serving

CROWD = 60
# What clients are promised: nothing takes longer, however things stand.
ANSWERED_S = 15.0
# Far below the seconds for which the crowd waits; a starved machine is not what is tested.
AT_ONCE_S = 8.0

# Method, path, and what goes with them.
Asked = tuple[str, str, dict[str, Any]]
# Status, the problem's code, and the seconds that the answer took.
Answer = tuple[int, str, float]


@dataclass(frozen=True)
class Tenant:
    """An owner and its connections."""

    owner: str
    http: httpx.AsyncClient

    async def asks(self, method: str, path: str, **how: Any) -> Answer:
        began_s = time.monotonic()
        answer = await self.http.request(method, path, **how)
        took_s = time.monotonic() - began_s
        if answer.status_code == 503 and path != "/readyz":
            assert int(answer.headers["retry-after"]) >= 1
        return answer.status_code, answer.json().get("code", "") if answer.is_error else "", took_s

    def crowds(self, method: str, path: str, **how: Any) -> list[asyncio.Task[Answer]]:
        return [asyncio.create_task(self.asks(method, path, **how)) for _ in range(CROWD)]

    async def is_served(self) -> None:
        """Wait for a farm whose database was silent a moment ago; one request a second tries it."""
        while (await self.asks("GET", "/v1/jobs"))[0] == 503:
            await asyncio.sleep(0.1)


Play = Callable[[Tenant, Tenant], Awaitable[None]]
Played = Callable[..., None]


@pytest.fixture(scope="module")
def url(engines: Settings) -> Iterator[str]:
    # Less patience than a farm has: tests are waited for, too.
    patch = pytest.MonkeyPatch()
    patch.setattr(desk, "STORAGE_S", 2.5)
    patch.setattr(workrooms, "PATIENCE_S", 1.0)
    with serving(engines.model_copy(update={"auth": "keys", "connect_seconds": 3.0})) as address:
        yield address
    patch.undo()


@pytest.fixture
def played(db: Database, redis: Redis, announced: str, url: str) -> Played:
    """Play a scene between two tenants: one that comes with a crowd, and one that works as usual."""
    assert announced
    assert redis.ping()

    async def scene(play: Play, limits: dict[str, Any]) -> None:
        async with _tenant(db, url, **limits) as first, _tenant(db, url) as second:
            for tenant in (first, second):
                await tenant.is_served()
            await play(first, second)

    return lambda play, **limits: asyncio.run(scene(play, limits))


@asynccontextmanager
async def _tenant(db: Database, url: str, **limits: Any) -> AsyncIterator[Tenant]:
    with db.transaction() as session:
        row, token = keys.create(session, NewKey(name="n", scopes=frozenset({Scope.SUBMIT, Scope.READ}), **limits))
    bounds = httpx.Limits(max_connections=None)
    authorization = {"Authorization": f"Bearer {token.text}"}
    async with httpx.AsyncClient(base_url=url, headers=authorization, limits=bounds, timeout=LIMIT_S) as http:
        yield Tenant(row.id, http)


async def went_on(tenant: Tenant, *asked: Asked) -> None:
    for method, path, how in (("GET", "/healthz", {}), *asked):
        status, code, took_s = await tenant.asks(method, path, **how)
        assert status in {200, 202}, (path, code)
        assert took_s < AT_ONCE_S, path


SUBMIT: Asked = ("POST", "/v1/jobs", {"json": BODY})
LIST: Asked = ("GET", "/v1/jobs", {})
COUNT: Asked = ("POST", "/v1/prompts/tokens", {"json": {"prompt": "a red circle"}})


def finished(db: Database, storage: Storage, owner: str) -> UUID:
    """Return a job of the owner that has its picture."""
    job_id = jobs.submit(db, owner=owner)
    claim = jobs.claimed(db)
    key, data = image_key(job_id, 1, 0), png("red")
    storage.put(key, data, content_type="image/png")
    with db.transaction() as session:
        image = FinishedImage(0, 1, key, "image/png", 64, 64, len(data), hashlib.sha256(data).hexdigest())
        assert lifecycle.succeed(session, claim, [image])
    return job_id


async def first_of(crowd: list[asyncio.Task[Answer]]) -> None:
    """Wait until the first of a crowd is answered, with most of it waiting still or refused."""
    await asyncio.wait(crowd, return_when=asyncio.FIRST_COMPLETED)


def test_a_store_that_hangs_holds_up_its_own_reads_alone(
    played: Played, settings: Settings, db: Database, storage: Storage
) -> None:
    async def play(first: Tenant, second: Tenant) -> None:
        mine, other = (finished(db, storage, tenant.owner) for tenant in (first, second))
        with frozen(settings, "s3"):
            crowd = first.crowds("GET", f"/v1/jobs/{mine}/images/0/thumbnail")
            await first_of(crowd)
            crowd.append(asyncio.create_task(second.asks("GET", f"/v1/jobs/{other}/images/0/thumbnail")))
            await went_on(second, SUBMIT, LIST, COUNT)
            await went_on(first, SUBMIT, LIST)
            answers = await asyncio.gather(*crowd)
        assert Counter(code for _, code, _ in answers[:CROWD]).keys() == {"too_busy", "storage_unavailable"}
        assert answers[CROWD][1] == "storage_unavailable"  # there was a place for it
        assert max(took_s for _, _, took_s in answers) < ANSWERED_S
        assert (await second.asks("GET", f"/v1/jobs/{other}/images/0/thumbnail"))[0] == 200

    played(play)


def test_while_every_engine_hangs_the_process_says_that_it_lives(
    played: Played, settings: Settings, db: Database, storage: Storage
) -> None:
    async def play(first: Tenant, second: Tenant) -> None:
        image = f"/v1/jobs/{finished(db, storage, first.owner)}/images/0"
        with frozen(settings, "s3"), frozen(settings, "redis"):
            crowd = [*first.crowds("GET", f"{image}/thumbnail"), *first.crowds("GET", f"{image}/preview")]
            await first_of(crowd)
            with frozen(settings, "postgres"):
                crowd += first.crowds("GET", "/v1/jobs")
                crowd += second.crowds("GET", "/readyz")
                await went_on(second)
                await first_of(crowd[2 * CROWD : 3 * CROWD])
                await went_on(second)
                _, unanswered = await asyncio.wait(crowd[2 * CROWD : 3 * CROWD], timeout=AT_ONCE_S)
                assert len(unanswered) <= CROWD / 2  # there are no more places, and the others were told so
        answers = await asyncio.gather(*crowd)
        assert {code for _, code, _ in answers[: 2 * CROWD]} >= {"too_busy"}
        assert {status for status, _, _ in answers} <= {200, 204, 503}
        await first.is_served()
        await went_on(first, SUBMIT, LIST)

    played(play)


def test_a_redis_that_hangs_delays_submits_little(played: Played, settings: Settings, db: Database) -> None:
    async def play(first: Tenant, second: Tenant) -> None:
        running = jobs.submit(db, owner=first.owner)
        with frozen(settings, "redis"):
            crowd = [
                *first.crowds("GET", f"/v1/jobs/{running}/images/0/preview"),
                *first.crowds("POST", f"/v1/jobs/{running}/cancel"),
                *first.crowds("POST", "/v1/jobs", json=BODY),
            ]
            await asyncio.sleep(0)
            await went_on(second, SUBMIT, LIST, COUNT)
            answers = await asyncio.gather(*crowd)
        assert {code for _, code, _ in answers[:CROWD]} == {"broker_unavailable", "too_busy"}
        assert {status for status, _, _ in answers[CROWD : 2 * CROWD]} <= {200, 409, 503}
        assert {status for status, _, _ in answers[2 * CROWD :]} <= {202, 503}
        assert max(took_s for _, _, took_s in answers[: 2 * CROWD]) < ANSWERED_S
        # Now that Redis is back, it is asked again.
        await went_on(first, SUBMIT)

    played(play, requests_per_minute=100_000)


def test_reading_prompts_takes_little_of_the_api(played: Played) -> None:
    """Editing that makes another long text of each step, in a crowd, with a key that may ask once a minute."""
    costly = "".join(f"[a{step}:b:{step % 150}] " for step in range(700))[:10_000]

    async def play(first: Tenant, second: Tenant) -> None:
        crowd = first.crowds(
            "POST", "/v1/prompts/tokens", json={"prompt": costly, "negative_prompt": costly, "steps": 150}
        )
        await asyncio.sleep(0)
        await went_on(second, SUBMIT, LIST, COUNT)
        answers = await asyncio.gather(*crowd)
        assert {code for _, code, _ in answers} <= {"invalid_request", "too_busy", "rate_limited"}
        assert (await first.asks("GET", "/v1/jobs"))[0] == 200

    played(play, requests_per_minute=2)
