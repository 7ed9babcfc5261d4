"""Webhooks and the feed of events over HTTP: endpoints, secrets, deliveries, replays, and what each caller may see."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient
from redis import Redis
from sqlalchemy import select
from standardwebhooks import Webhook

from api.auth import keys
from api.auth.keys import NewKey, Scope
from api.main import create_app
from shared.infra.db import Database
from shared.infra.outbound_http import OutboundHttp
from shared.infra.tables import DeliveryRow, EndpointRow
from shared.settings import Settings
from shared.webhooks.endpoints import MAX_REGISTERED
from tests.support.answers import problem
from tests.support.factories import BODY
from tests.support.receiver import Receiver, receiving
from worker.courier.webhooks import Courier

MOST = 5
ENDINGS = ["job.succeeded", "job.failed", "job.canceled", "job.expired"]


@pytest.fixture(scope="module")
def open_settings(engines: Settings) -> Settings:
    return engines.model_copy(update={"allow_private_urls": True, "max_webhook_urls": MOST})


@pytest.fixture(scope="module")
def front(open_settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(open_settings)) as opened:
        yield opened


@pytest.fixture
def client(front: TestClient, announced: str, redis: Redis) -> TestClient:
    assert announced
    assert redis.ping()
    return front


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as opened:
        yield opened


def register(client: TestClient, url: str, **more: Any) -> dict[str, Any]:
    made = client.post("/v1/webhooks/endpoints", json={"url": url, **more})
    assert made.status_code == 201, made.text
    body: dict[str, Any] = made.json()
    assert made.headers["location"] == f"/v1/webhooks/endpoints/{body['id']}"
    return body


def canceled(client: TestClient, **more: Any) -> str:
    job_id = client.post("/v1/jobs", json={**BODY, **more}).json()["id"]
    assert client.post(f"/v1/jobs/{job_id}/cancel").status_code == 200
    return str(job_id)


def deliver(db: Database, settings: Settings) -> int:
    courier = Courier(db, OutboundHttp(allow_private=True), settings)
    handed_out = courier.hand_out()
    courier._pool.shutdown(wait=True)
    return handed_out


def test_an_endpoint_is_registered_shown_changed_and_deleted(client: TestClient) -> None:
    made = register(client, "https://hooks.example/a")
    assert made["secret"].startswith("whsec_")
    assert (made["events"], made["state"], made["registered"]) == (sorted(ENDINGS), "active", True)
    path = f"/v1/webhooks/endpoints/{made['id']}"
    shown = client.get(path).json()
    assert "secret" not in shown
    assert client.get("/v1/webhooks/endpoints").json() == {"endpoints": [shown]}
    changed = client.patch(path, json={"url": "https://new.example/", "events": ["job.failed", "job.failed"]}).json()
    assert (changed["url"], changed["events"]) == ("https://new.example/", ["job.failed"])
    assert client.post(f"{path}/pause").json()["state"] == "paused"
    assert client.post(f"{path}/resume").json()["state"] == "active"
    assert client.delete(path).status_code == 204
    problem(client.get(path), 404, "endpoint_not_found")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"url": "http://169.254.169.254/"}, "url_blocked"),
        ({"url": "ftp://h.example/"}, "url_blocked"),
        ({"url": "https://h.example/", "secret": "hunter2hunter2"}, "invalid_request"),
        ({"url": "https://h.example/", "secret": "whsec_c2hvcnQ="}, "invalid_request"),
        ({"url": "https://h.example/", "events": []}, "invalid_request"),
        ({"url": "https://h.example/", "events": ["job.imagined"]}, "invalid_request"),
        ({"url": "https://h.example/\0"}, "url_blocked"),
        ({"events": ENDINGS}, "invalid_request"),
        ({"url": "https://h.example/", "color": "red"}, "invalid_request"),
    ],
)
def test_what_no_endpoint_can_be(client: TestClient, body: dict[str, Any], code: str) -> None:
    detail = problem(client.post("/v1/webhooks/endpoints", json=body), 422, code)["detail"]
    assert "hunter2" not in detail
    if "url" in body and "color" not in body:
        problem(client.post("/v1/jobs", json={**BODY, "webhook": body}), 422, code)
        assert client.get("/v1/jobs").json()["jobs"] == []


def test_loopback_is_no_endpoint_unless_allowed(engines: Settings, announced: str) -> None:
    assert announced
    with TestClient(create_app(engines)) as strict:
        refused = strict.post("/v1/webhooks/endpoints", json={"url": "http://127.0.0.1/"})
        assert "FARM_ALLOW_PRIVATE_URLS" in problem(refused, 422, "url_blocked")["detail"]


def test_no_owner_has_more_endpoints_than_its_jobs_can_bear(client: TestClient) -> None:
    for number in range(MAX_REGISTERED):
        register(client, f"https://h{number}.example/")
    problem(client.post("/v1/webhooks/endpoints", json={"url": "https://h.example/"}), 409, "too_many_endpoints")


def test_a_receiver_proves_itself_by_its_first_delivery_and_anew_at_a_new_url(
    client: TestClient, db: Database, open_settings: Settings, receiver: Receiver
) -> None:
    endpoint = register(client, receiver.url)

    def is_proven() -> bool:
        with db.transaction() as session:
            return session.scalars(select(EndpointRow)).one().proven_at is not None

    receiver.answers = [(500, {})]
    canceled(client)
    deliver(db, open_settings)
    assert not is_proven()
    client.post(f"/v1/webhooks/endpoints/{endpoint['id']}/resume")
    deliver(db, open_settings)
    assert is_proven()
    client.patch(f"/v1/webhooks/endpoints/{endpoint['id']}", json={"url": receiver.url + "/new"})
    assert not is_proven()


def test_jobs_name_a_bounded_number_of_urls(
    client: TestClient, db: Database, open_settings: Settings, receiver: Receiver
) -> None:
    """Waiting jobs, an open batch and undelivered webhooks count; what the receiver has taken does not, nor does a repeat."""
    jobs = [submitted(client, f"{receiver.url}/{number}") for number in range(MOST - 1)]
    batch = client.post("/v1/batches", json={"jobs": [BODY], "webhook": {"url": receiver.url + "/batch"}})
    assert batch.status_code == 202, batch.text
    refused = client.post("/v1/jobs", json=naming(receiver.url + "/more"))
    assert "POST /v1/webhooks/endpoints" in problem(refused, 429, "too_many_webhook_urls")["detail"]
    submitted(client, receiver.url + "/0")
    assert client.post(f"/v1/jobs/{jobs[1]}/cancel").status_code == 200
    problem(client.post("/v1/jobs", json=naming(receiver.url + "/more")), 429, "too_many_webhook_urls")
    assert deliver(db, open_settings) == 1
    submitted(client, receiver.url + "/more")


def test_a_batch_that_names_too_many_urls_is_refused_as_a_whole(client: TestClient, db: Database) -> None:
    named = [naming(f"https://h{number}.example/") for number in range(MOST + 1)]
    problem(client.post("/v1/batches", json={"jobs": named}), 429, "too_many_webhook_urls")
    with db.transaction() as session:
        assert session.scalars(select(EndpointRow)).all() == []
    assert client.get("/v1/jobs").json()["jobs"] == []
    assert client.post("/v1/batches", json={"jobs": named[:MOST]}).status_code == 202


def naming(url: str) -> dict[str, Any]:
    return {**BODY, "webhook": {"url": url, "events": ["job.canceled"]}}


def submitted(client: TestClient, url: str) -> str:
    answer = client.post("/v1/jobs", json=naming(url))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def test_a_jobs_own_webhook_is_signed_with_the_callers_secret(
    client: TestClient, db: Database, open_settings: Settings, receiver: Receiver
) -> None:
    secret = client.get("/v1/webhooks/secret").json()["secret"]
    job_id = canceled(client, webhook={"url": receiver.url + "/mine"})
    assert deliver(db, open_settings) == 1
    message = receiver.next()
    assert Webhook(secret).verify(message.body, message.headers)["data"]["id"] == job_id
    assert client.get("/v1/webhooks/endpoints").json() == {"endpoints": []}
    (shown,) = client.get("/v1/webhooks/deliveries").json()["deliveries"]
    assert client.get(f"/v1/webhooks/endpoints/{shown['endpoint_id']}").json()["registered"] is False


def test_jobs_that_name_the_same_share_a_receiver(client: TestClient, db: Database) -> None:
    for events in (["job.failed", "job.canceled"], ["job.canceled", "job.failed"]):
        canceled(client, webhook={"url": "https://h.example/", "events": events})
    with db.transaction() as session:
        assert len(session.scalars(select(EndpointRow)).all()) == 1


@pytest.mark.parametrize("path", ["endpoints/{id}/rotate", "secret/rotate"])
def test_a_rotated_secret_overlaps_with_the_one_before(
    client: TestClient, db: Database, open_settings: Settings, receiver: Receiver, path: str
) -> None:
    if path.startswith("secret"):
        old = client.get("/v1/webhooks/secret").json()["secret"]
        hook: dict[str, Any] = {"webhook": {"url": receiver.url}}
    else:
        made = register(client, receiver.url)
        old, path, hook = made["secret"], path.format(id=made["id"]), {}
    rotated = client.post(f"/v1/webhooks/{path}", json={"overlap_s": 3600}).json()
    assert rotated["old_secret_until"] is not None
    canceled(client, **hook)
    deliver(db, open_settings)
    message = receiver.next()
    for secret in (old, rotated["secret"]):
        Webhook(secret).verify(message.body, message.headers)
    client.post(f"/v1/webhooks/{path}", json={"overlap_s": 0})
    canceled(client, **hook)
    deliver(db, open_settings)
    assert len(receiver.next().headers["webhook-signature"].split(" ")) == 1


def test_deliveries_show_every_attempt_and_are_replayed(
    client: TestClient, db: Database, open_settings: Settings, receiver: Receiver
) -> None:
    endpoint = register(client, receiver.url)
    receiver.answers = [(500, {})]
    job_id = canceled(client)
    deliver(db, open_settings)
    (shown,) = client.get("/v1/webhooks/deliveries", params={"job_id": job_id, "state": "pending"}).json()["deliveries"]
    assert shown["attempts"][0]["status"] == 500
    assert "500" in shown["attempts"][0]["error"]
    assert (shown["type"], shown["url"], shown["endpoint_id"]) == ("job.canceled", receiver.url, endpoint["id"])
    assert shown["next_attempt_at"] > shown["created_at"]
    path = f"/v1/webhooks/deliveries/{shown['id']}"
    replayed = client.post(f"{path}/replay")
    assert replayed.status_code == 202
    assert deliver(db, open_settings) == 1
    again = client.get(path).json()
    assert (again["state"], again["next_attempt_at"]) == ("delivered", None)
    assert [attempt["status"] for attempt in again["attempts"]] == [500, 200]
    assert [receiver.next().id for _ in range(2)] == [shown["webhook_id"]] * 2


def test_a_range_is_replayed(client: TestClient, db: Database, open_settings: Settings, receiver: Receiver) -> None:
    endpoint = register(client, receiver.url)
    canceled(client)
    middle = canceled(client)
    canceled(client)
    while deliver(db, open_settings):
        pass
    page = client.get("/v1/webhooks/deliveries").json()["deliveries"]
    assert [one["state"] for one in page] == ["delivered"] * 3
    since, until = page[1]["created_at"], page[0]["created_at"]

    def replay(**conditions: Any) -> int:
        answer = client.post("/v1/webhooks/deliveries/replay", json=conditions)
        assert answer.status_code == 202, answer.text
        return int(answer.json()["replayed"])

    assert replay() == 0  # none has failed
    assert replay(state=None, since=since, until=until) == 1
    assert deliver(db, open_settings) == 1
    assert [json.loads(receiver.next().body)["data"]["id"] for _ in range(4)][-1] == middle
    assert replay(state="delivered", endpoint_id=endpoint["id"]) == 3
    assert replay(state="delivered", job_id=str(uuid4())) == 0
    problem(client.post("/v1/webhooks/deliveries/replay", json={"since": "yesterday"}), 422, "invalid_request")


def test_a_gone_endpoint_is_replayed_only_once_resumed(
    client: TestClient, db: Database, open_settings: Settings, receiver: Receiver
) -> None:
    endpoint = register(client, receiver.url)
    receiver.answers = [(410, {})]
    canceled(client)
    deliver(db, open_settings)
    (shown,) = client.get("/v1/webhooks/deliveries").json()["deliveries"]
    path = f"/v1/webhooks/deliveries/{shown['id']}/replay"
    problem(client.post(path), 409, "endpoint_is_gone")
    assert client.post("/v1/webhooks/deliveries/replay", json={}).json() == {"replayed": 0}
    client.post(f"/v1/webhooks/endpoints/{endpoint['id']}/resume")
    assert client.post(path).status_code == 202


def test_deliveries_come_in_pages(client: TestClient) -> None:
    register(client, "https://h.example/")
    made = [canceled(client) for _ in range(3)]
    first = client.get("/v1/webhooks/deliveries", params={"limit": 2}).json()
    rest = client.get("/v1/webhooks/deliveries", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [one["job_id"] for one in first["deliveries"] + rest["deliveries"]] == made[::-1]
    assert rest["next_cursor"] is None


def test_the_feed_lets_a_receiver_catch_up(client: TestClient) -> None:
    start = client.get("/v1/events", params={"after": "latest"}).json()
    assert start["events"] == []
    made = [canceled(client) for _ in range(3)]
    first = client.get("/v1/events", params={"after": start["next_cursor"], "limit": 2}).json()
    assert first["has_more"]
    rest = client.get("/v1/events", params={"after": first["next_cursor"], "limit": 2}).json()
    assert not rest["has_more"]
    assert [one["job_id"] for one in first["events"] + rest["events"]] == made
    assert {one["type"] for one in rest["events"]} == {"job.canceled"}
    again = client.get("/v1/events", params={"after": rest["next_cursor"]}).json()
    assert (again["events"], again["next_cursor"]) == ([], rest["next_cursor"])
    assert [one["job_id"] for one in client.get("/v1/events").json()["events"]] == made


def test_the_feed_and_the_webhook_call_an_event_the_same(
    client: TestClient, db: Database, open_settings: Settings, receiver: Receiver
) -> None:
    register(client, receiver.url)
    canceled(client)
    deliver(db, open_settings)
    assert receiver.next().id == client.get("/v1/events").json()["events"][0]["id"]


@pytest.mark.parametrize("cursor", ["nonsense", "", "AAAA", "AAAAAAAAAAAAAAAAAAAAAAA", "é", "\0"])
def test_a_cursor_that_was_never_given_out_is_refused(client: TestClient, cursor: str) -> None:
    problem(client.get("/v1/events", params={"after": cursor}), 422, "bad_cursor")


@pytest.fixture
def tenants(open_settings: Settings, db: Database, announced: str, redis: Redis) -> Iterator[list[TestClient]]:
    """Two keys, each with a client of its own."""
    assert announced
    assert redis.ping()
    app = create_app(open_settings.model_copy(update={"auth": "keys"}))
    with db.transaction() as session:
        wanted = NewKey(name="tenant", scopes=[Scope.SUBMIT, Scope.READ])
        tokens = [keys.create(session, wanted)[1].text for _ in range(2)]
    with TestClient(app):
        yield [TestClient(app, headers={"Authorization": f"Bearer {token}"}) for token in tokens]


def test_nothing_of_another_key_is_seen_or_touched(tenants: list[TestClient], db: Database) -> None:
    mine, other = tenants
    endpoint = register(mine, "https://h.example/")["id"]
    canceled(mine)
    (delivery,) = mine.get("/v1/webhooks/deliveries").json()["deliveries"]
    assert mine.get("/v1/webhooks/secret").json() != other.get("/v1/webhooks/secret").json()
    assert other.get("/v1/webhooks/endpoints").json() == {"endpoints": []}
    assert other.get("/v1/webhooks/deliveries").json()["deliveries"] == []
    assert other.get("/v1/events").json()["events"] == []
    for method, path, body in (
        ("GET", f"endpoints/{endpoint}", None),
        ("PATCH", f"endpoints/{endpoint}", {}),
        ("DELETE", f"endpoints/{endpoint}", None),
        ("POST", f"endpoints/{endpoint}/pause", None),
        ("POST", f"endpoints/{endpoint}/resume", None),
        ("POST", f"endpoints/{endpoint}/rotate", {}),
    ):
        problem(other.request(method, f"/v1/webhooks/{path}", json=body), 404, "endpoint_not_found")
    for method, path in (("GET", ""), ("POST", "/replay")):
        problem(other.request(method, f"/v1/webhooks/deliveries/{delivery['id']}{path}"), 404, "delivery_not_found")
    assert other.post("/v1/webhooks/deliveries/replay", json={"state": None}).json() == {"replayed": 0}
    canceled(other)
    with db.transaction() as session:
        assert len(session.scalars(select(DeliveryRow)).all()) == 1


@pytest.mark.parametrize("what", ["endpoints", "deliveries"])
def test_what_is_no_id_is_not_found(client: TestClient, what: str) -> None:
    assert client.get(f"/v1/webhooks/{what}/no-id").status_code == 404
