"""API keys over HTTP, on the real engines: who gets in, what they see, and what never shows."""

import asyncio
import base64
import itertools
import logging
import re
import socket
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from sqlalchemy import text

from api import callers
from api.auth import keys
from api.auth.key_cache import REMEMBER_S, KeyCache
from api.auth.keys import KeyLimits, NewKey, Scope, Token
from api.desk import Desk
from api.limits.quota import COUNTED_FOR_S, Quota
from api.limits.rate import MOST_DEBT_S, REQUESTS, TOKEN_COUNTS, RateLimit
from api.main import create_app
from shared.errors import QueueFullForKey, RateLimited
from shared.infra import broker
from shared.infra.db import Database
from shared.settings import Settings
from tests.support.answers import problem
from tests.support.factories import BODY

ADMIN_KEY = "the-operators-own-key-of-32-characters"


@pytest.fixture(scope="module")
def app(engines: Settings) -> Iterator[TestClient]:
    settings = engines.model_copy(update={"auth": "keys", "admin_key": SecretStr(ADMIN_KEY)})
    with TestClient(create_app(settings), raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


@pytest.fixture
def door(app: TestClient, announced: str, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    assert announced
    assert redis.ping()
    monkeypatch.setattr(desk(app).keys, "_entries", {})
    desk(app).quota.forget()
    return app


def issue(db: Database, *scopes: Scope, **fields: Any) -> str:
    wanted = NewKey(name="n", scopes=frozenset(scopes or {Scope.SUBMIT, Scope.READ}), **fields)
    with db.transaction() as session:
        return keys.create(session, wanted)[1].text


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    "header",
    [
        None,
        "Bearer",
        "Bearer nonsense",
        "Bearer farm_0123456789_" + 43 * "A",
        "Bearer farm_0123456789_é",
        "Basic !!!",
        "Basic " + base64.b64encode(b"no colon").decode(),
        "Digest x",
    ],
)
def test_without_a_good_key_nothing_is_told(door: TestClient, header: str | None) -> None:
    headers = {"Authorization": header.encode()} if header else {}
    refused = door.get("/v1/jobs", headers=headers)  # type: ignore[arg-type]
    problem(refused, 401, "unauthenticated")
    assert refused.headers["www-authenticate"].startswith(("Bearer", "Basic"))


def test_a_key_opens_by_bearer_and_as_any_users_password(door: TestClient, db: Database) -> None:
    token = issue(db)
    assert door.get("/v1/jobs", headers=bearer(token)).status_code == 200
    assert door.get("/v1/jobs", auth=("anyone", token)).status_code == 200


def test_health_needs_no_key(door: TestClient) -> None:
    for path in ("/healthz", "/readyz", "/openapi.json", "/docs"):
        assert door.get(path).status_code == 200, path


def test_every_route_of_the_api_asks_for_a_key(door: TestClient) -> None:
    paths = door.get("/openapi.json").json()["paths"]
    operations = [(path, verb) for path, item in paths.items() for verb in item if path.startswith(("/v1", "/sdapi"))]
    assert operations
    for path, verb in operations:
        assert door.request(verb, re.sub(r"\{\w+\}", str(UUID(int=0)), path)).status_code == 401, (verb, path)


def test_scopes_bound_what_a_key_may_do(door: TestClient, db: Database) -> None:
    reader, submitter = issue(db, Scope.READ), issue(db, Scope.SUBMIT)
    refused = problem(door.post("/v1/jobs", json=BODY, headers=bearer(reader)), 403, "scope_missing")
    assert "submit" in refused["detail"]
    assert door.post("/v1/jobs", json=BODY, headers=bearer(submitter)).status_code == 202
    problem(door.get("/v1/jobs", headers=bearer(submitter)), 403, "scope_missing")
    problem(door.get("/v1/keys", headers=bearer(reader)), 403, "scope_missing")


def test_a_key_sees_its_own_and_nothing_else(door: TestClient, db: Database) -> None:
    mine, other, admin = issue(db), issue(db), issue(db, Scope.ADMIN)
    job_id = door.post("/v1/jobs", json=BODY, headers=bearer(mine)).json()["id"]
    for verb, path in (
        ("GET", f"/v1/jobs/{job_id}"),
        ("POST", f"/v1/jobs/{job_id}/cancel"),
        ("GET", f"/v1/jobs/{job_id}/images/0"),
        ("GET", f"/v1/jobs/{job_id}/images/0/preview"),
    ):
        problem(door.request(verb, path, headers=bearer(other)), 404, "job_not_found")
    assert door.get("/v1/jobs", headers=bearer(other)).json()["jobs"] == []
    for token in (mine, admin, ADMIN_KEY):
        assert [job["id"] for job in door.get("/v1/jobs", headers=bearer(token)).json()["jobs"]] == [job_id]


def test_the_life_of_a_key_over_http(door: TestClient, db: Database) -> None:
    issued = door.post("/v1/keys", json={"name": "ci", "weight": 2.5}, headers=bearer(ADMIN_KEY))
    assert issued.status_code == 201
    key = issued.json()
    token = key.pop("token")
    assert door.get("/v1/keys/me", headers=bearer(token)).json()["owner"] == key["id"]
    listed = door.get("/v1/keys", headers=bearer(ADMIN_KEY))
    assert [one["id"] for one in listed.json()["keys"]] == [key["id"]]
    assert token.split("_", 2)[2] not in listed.text
    changed = door.patch(f"/v1/keys/{key['id']}", json={"paused": True}, headers=bearer(ADMIN_KEY)).json()
    assert (changed["paused"], changed["weight"]) == (True, 2.5)
    assert door.delete(f"/v1/keys/{key['id']}", headers=bearer(ADMIN_KEY)).json()["revoked_at"]
    problem(door.delete("/v1/keys/none", headers=bearer(ADMIN_KEY)), 404, "key_not_found")
    with db.transaction() as session:
        stored = session.execute(text("SELECT * FROM keys")).one()
    assert not [column for column in stored if token.split("_", 2)[2] in str(column)]


def test_a_revoked_or_expired_key_opens_nothing(door: TestClient, db: Database) -> None:
    revoked, expired = issue(db), issue(db)
    with db.transaction() as session:
        for row in keys.listing(session):
            if row.prefix in revoked:
                keys.revoke(session, row.id)
            else:
                session.execute(text("UPDATE keys SET expires_at = now() WHERE id = :id"), {"id": row.id})
    assert "revoked" in problem(door.get("/v1/jobs", headers=bearer(revoked)), 401, "unauthenticated")["detail"]
    assert "expired" in problem(door.get("/v1/jobs", headers=bearer(expired)), 401, "unauthenticated")["detail"]


def test_a_key_costs_no_query_until_its_memory_ends(db: Database) -> None:
    now = 0.0
    ring = KeyCache(db, clock=lambda: now)
    token = Token.read(issue(db))
    assert token is not None
    assert ring.remembered(token) is None
    first = ring.fetch(token)
    assert ring.remembered(token) is first
    assert ring.remembered(Token(token.prefix, Token.drawn().secret)) is None
    now = REMEMBER_S
    assert ring.remembered(token) is None
    with db.transaction() as session:
        keys.revoke(session, keys.listing(session)[0].id)
    row = ring.fetch(token).row
    assert row is not None
    assert row.revoked_at is not None


def test_use_is_noted_to_the_minute(db: Database) -> None:
    token = Token.read(issue(db))
    assert token is not None
    with db.transaction() as session:
        keys.find(session, token)
        used = keys.listing(session)[0].last_used_at
    assert used is not None
    with db.transaction() as session:
        keys.find(session, token)
        assert keys.listing(session)[0].last_used_at == used


def test_no_key_is_in_any_log(door: TestClient, db: Database, caplog: pytest.LogCaptureFixture) -> None:
    token, unknown = issue(db), Token.drawn().text
    with caplog.at_level(logging.DEBUG):
        door.post("/v1/jobs", json=BODY, headers=bearer(token))
        door.post("/v1/jobs", json={"prompt": 1}, headers=bearer(token))
        door.get("/v1/jobs", headers=bearer(unknown))
        door.get("/v1/jobs", auth=("anyone", ADMIN_KEY))
        created = door.post("/v1/keys", json={"name": "x"}, headers=bearer(ADMIN_KEY)).json()["token"]
    written = caplog.text + "".join(str(record.__dict__) for record in caplog.records)
    for secret in (token, unknown, created):
        assert secret.split("_", 2)[2] not in written
    assert ADMIN_KEY not in written


def test_the_docs_know_how_to_authorize(door: TestClient) -> None:
    document = door.get("/openapi.json").json()
    assert {scheme["scheme"] for scheme in document["components"]["securitySchemes"].values()} == {"bearer", "basic"}
    assert document["paths"]["/v1/jobs"]["post"]["security"]


def test_limits_that_make_no_sense_are_refused(door: TestClient) -> None:
    bad: list[dict[str, Any]] = [{"weight": 0}, {"max_priority": 11}, {"scopes": []}, {"scopes": ["all"]}, {"x": 1}]
    for changes in bad:
        response = door.post("/v1/keys", json={"name": "n", **changes}, headers=bearer(ADMIN_KEY))
        problem(response, 422, "invalid_request")
    assert KeyLimits().model_fields_set == set()


def test_a_keys_rate_is_its_own_and_says_when_to_come_back(door: TestClient, db: Database) -> None:
    hasty, calm = issue(db, requests_per_minute=3), issue(db, requests_per_minute=3)
    codes = [door.get("/v1/jobs", headers=bearer(hasty)).status_code for _ in range(4)]
    assert codes == [200, 200, 200, 429]
    refused = door.get("/v1/jobs", headers=bearer(hasty))
    problem(refused, 429, "rate_limited")
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    assert door.get("/v1/jobs", headers=bearer(calm)).status_code == 200


def test_typing_takes_nothing_from_the_rate_of_submits_and_is_bounded(
    door: TestClient, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers, "COUNTING_PER_MINUTE", 4)
    typist = bearer(issue(db, requests_per_minute=2))
    assert door.post("/v1/prompts/tokens", json={}, headers=bearer(ADMIN_KEY)).is_success  # loads the tokenizer

    def typed(headers: dict[str, str]) -> int:
        return door.post("/v1/prompts/tokens", json={"prompt": "a red circle"}, headers=headers).status_code

    assert [typed(typist) for _ in range(5)] == [200, 200, 200, 200, 429]
    assert [door.post("/v1/jobs", json=BODY, headers=typist).status_code for _ in range(3)] == [202, 202, 429]
    assert [typed(bearer(issue(db, requests_per_minute=6))) for _ in range(5)] == [200] * 5


def test_long_prompts_count_as_several(door: TestClient, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "COUNTING_PER_MINUTE", 100)
    typist = bearer(issue(db, requests_per_minute=2))
    costly = {"prompt": "[a|b] " * 1600, "negative_prompt": "[a|b] " * 1600, "steps": 150}
    answers = (door.post("/v1/prompts/tokens", json=costly, headers=typist) for _ in range(100))
    codes = list(itertools.takewhile(lambda code: code == 200, (answer.status_code for answer in answers)))
    assert len(codes) < 50


def test_without_redis_no_rate_holds(engines: Settings) -> None:
    """One request pays for finding out; the next ones do not even ask."""

    async def asked(away: AsyncRedis) -> None:
        async with RateLimit(away, clock=lambda: 0.0) as throttle:
            for _ in range(5):
                await throttle.take("k", 1)
        async with RateLimit(broker.connect_async(engines)) as throttle:
            await throttle.take("back", 1)
            with pytest.raises(RateLimited) as refused:
                await throttle.take("back", 1)
            assert 55 < (refused.value.retry_after_s or 0) <= 60

    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        asyncio.run(asked(AsyncRedis.from_url(f"redis://127.0.0.1:{nobody.getsockname()[1]}/0")))


def test_costly_requests_count_as_several(engines: Settings, redis: Redis) -> None:
    assert redis.ping()

    async def asked() -> None:
        async with RateLimit(broker.connect_async(engines)) as throttle:
            for _ in range(3):  # each pays for its own work
                await throttle.take("frugal", 60)
                throttle.spend("frugal", REQUESTS.pays_s)
            await throttle.take("frugal", 60)
            await throttle.take("wasteful", 60)
            throttle.spend("wasteful", 91 * REQUESTS.pays_s)
            for _ in range(2):  # what refused requests do not pay for stays owed
                with pytest.raises(RateLimited) as refused:
                    await throttle.take("wasteful", 60)
                assert 25 < (refused.value.retry_after_s or 0) <= 31
            await throttle.take("wasteful", 60, TOKEN_COUNTS)  # another bucket
            throttle.spend("frugal", 1e9)
            with pytest.raises(RateLimited) as refused:
                await throttle.take("frugal", 60)
            assert (refused.value.retry_after_s or 0) <= MOST_DEBT_S + 1

    asyncio.run(asked())


def test_priority_is_bounded_by_the_key(door: TestClient, db: Database) -> None:
    token = issue(db, max_priority=3)
    accepted = door.post("/v1/jobs", json={**BODY, "priority": 3}, headers=bearer(token))
    assert (accepted.status_code, accepted.json()["priority"]) == (202, 3)
    assert door.post("/v1/jobs", json={**BODY, "priority": -10}, headers=bearer(token)).status_code == 202
    problem(door.post("/v1/jobs", json={**BODY, "priority": 4}, headers=bearer(token)), 403, "priority_too_high")
    problem(door.post("/v1/jobs", json={**BODY, "priority": 11}, headers=bearer(token)), 422, "invalid_request")


def test_a_keys_queue_is_bounded_and_opens_again(door: TestClient, db: Database) -> None:
    full, other = issue(db, max_queued=2), issue(db)
    ids = [door.post("/v1/jobs", json=BODY, headers=bearer(full)).json()["id"] for _ in range(2)]
    refused = door.post("/v1/jobs", json=BODY, headers=bearer(full))
    problem(refused, 429, "queue_full_for_key")
    assert int(refused.headers["retry-after"]) > 0
    assert door.post("/v1/jobs", json=BODY, headers=bearer(other)).status_code == 202
    door.post(f"/v1/jobs/{ids[0]}/cancel", headers=bearer(full))
    desk(door).quota.forget()
    assert door.post("/v1/jobs", json=BODY, headers=bearer(full)).status_code == 202


def test_the_whole_queue_is_bounded(door: TestClient, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk(door).quota, "_max_queued", 2)
    token, late = issue(db), issue(db)
    for _ in range(2):
        assert door.post("/v1/jobs", json=BODY, headers=bearer(token)).status_code == 202
    refused = door.post("/v1/jobs", json=BODY, headers=bearer(late))
    problem(refused, 503, "queue_full")
    assert int(refused.headers["retry-after"]) > 0


def test_a_count_is_believed_for_a_second(db: Database) -> None:
    now = 0.0
    quota = Quota(100, clock=lambda: now)
    with db.transaction() as session:
        quota.admit(lambda: session, "o", 2, count=2)
        with pytest.raises(QueueFullForKey):
            quota.admit(lambda: session, "o", 2)
        now = COUNTED_FOR_S
        quota.admit(lambda: session, "o", 2)  # nothing was stored after all


def desk(door: TestClient) -> Desk:
    found: Desk = door.app.state.desk  # type: ignore[attr-defined]
    return found
