"""What belongs to one key is to every other as if it had never been: a walk over all routes, as the API documents itself."""

import re
from base64 import b64encode
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi.testclient import TestClient
from redis import Redis

from api.auth import keys
from api.auth.keys import NewKey, Scope
from api.main import create_app
from shared.infra.db import Database
from shared.infra.tables import JobRow
from shared.settings import Settings
from tests.support.factories import BODY, DEMO, png

# What nobody but an admin may ask at all; and those of the farm, which are everyone's to see.
OF_THE_FARM = ("/v1/keys/", "/v1/workers/")
IDS_OF_ONES_OWN = ("put", "/v1/jobs/{job_id}")
PICTURE = b64encode(png("#ff0000")).decode()
VERBS = {"get", "post", "put", "patch", "delete"}


@pytest.fixture(scope="module")
def front(engines: Settings) -> Iterator[TestClient]:
    settings = engines.model_copy(update={"auth": "keys", "allow_private_urls": True, "default_checkpoint": DEMO})
    with TestClient(create_app(settings), raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


@pytest.fixture
def mine(front: TestClient, announced: str, redis: Redis, db: Database) -> Iterator[tuple[TestClient, dict[str, str]]]:
    """A stranger's client, and the ids of what another owner has: one of everything that a path can name."""
    assert announced == DEMO
    assert redis.ping()
    wanted = NewKey(name="n", scopes=frozenset({Scope.SUBMIT, Scope.READ}))
    with db.transaction() as session:
        owner, stranger = (keys.create(session, wanted)[1].text for _ in range(2))
    headers = {"Authorization": f"Bearer {owner}"}
    hook = {"url": "http://127.0.0.1:9/", "events": ["job.canceled"]}
    endpoint = front.post("/v1/webhooks/endpoints", json=hook, headers=headers).json()
    batch = front.post("/v1/batches", json={"jobs": [{**BODY, "init_image": PICTURE}]}, headers=headers).json()
    job = front.get("/v1/jobs", headers=headers).json()["jobs"][0]
    upload = front.post("/v1/uploads", json={"size_bytes": 1}, headers=headers).json()
    front.post(f"/v1/jobs/{job['id']}/cancel", headers=headers)
    [delivery] = front.get("/v1/webhooks/deliveries", headers=headers).json()["deliveries"]
    ids = {"job": job, "batch": batch, "endpoint": endpoint, "delivery": delivery, "upload": upload}
    front.headers["Authorization"] = f"Bearer {stranger}"
    yield front, {f"{name}_id": str(one["id"]) for name, one in ids.items()} | {"index": "0", "field": "init_image"}
    del front.headers["Authorization"]


def routes(client: TestClient) -> Iterator[tuple[str, str]]:
    """Yield every verb and path that names something of an owner."""
    for path, item in client.get("/openapi.json").json()["paths"].items():
        if path.startswith("/v1/") and "{" in path and not path.startswith(OF_THE_FARM):
            yield from ((verb, path) for verb in item if verb in VERBS)


def test_nobody_finds_what_is_anothers(mine: tuple[TestClient, dict[str, str]]) -> None:
    client, ids = mine
    walked = list(routes(client))
    assert len(walked) > 20
    for verb, path in walked:
        if (verb, path) == IDS_OF_ONES_OWN:
            continue  # the next test
        body: Any = {} if verb in {"post", "patch"} else None
        answers = [client.request(verb, path.format(**known), json=body) for known in (ids, _never(ids))]
        seen = [(answer.status_code, answer.json().get("code")) for answer in answers]
        assert seen[0] == seen[1], (verb, path)
        assert seen[0][0] == 404, (verb, path, seen)
        assert str(BODY["prompt"]) not in answers[0].text


def test_an_id_that_is_anothers_is_as_free_as_any(mine: tuple[TestClient, dict[str, str]], db: Database) -> None:
    client, ids = mine
    lives = [life(client, chosen) for chosen in (ids["job_id"], str(uuid4()))]
    assert lives[0] == lives[1]
    with db.transaction() as session:
        untouched = session.get_one(JobRow, UUID(ids["job_id"]))
        assert (untouched.state, untouched.chosen_id) == ("canceled", None)


def life(client: TestClient, chosen: str) -> list[Any]:
    """Lead a job of a chosen id through its life; returns all that its client is told, without times and seeds."""
    path = f"/v1/jobs/{chosen}"
    told: list[Any] = []

    def note(answer: Any) -> None:
        text = re.sub(r"20\d\d-[^\"]+|\d+\.\d+", "TIME", answer.text.replace(chosen, "ID"))
        told.append((answer.status_code, answer.headers.get("location", "").replace(chosen, "ID"), text))

    wanted = {**BODY, "seed": 1}
    note(client.put(path, json=wanted))
    note(client.put(path, json=wanted))
    note(client.put(path, json={**wanted, "steps": 5}))
    note(client.get(path))
    note(client.get(f"{path}?wait=1"))
    note(client.get(f"{path}/images/0"))
    note(client.get(f"{path}/images/0/preview"))
    note(client.delete(path))
    note(client.post(f"{path}/cancel"))
    note(client.post(f"{path}/cancel"))
    note(client.get(f"{path}/events"))
    assert chosen in [job["id"] for job in client.get("/v1/jobs").json()["jobs"]]
    note(client.delete(path))
    note(client.get(path))
    note(client.put(path, json=wanted))
    assert [status for status, *_ in told] == [202, 202, 422, 200, 200, 409, 204, 409, 200, 409, 200, 204, 410, 410]
    return told


def test_an_admin_who_sees_the_other_job_is_told_of_it(
    front: TestClient, mine: tuple[TestClient, dict[str, str]], db: Database
) -> None:
    _, ids = mine
    with db.transaction() as session:
        admin = keys.create(session, NewKey(name="n", scopes=frozenset({Scope.ADMIN})))[1].text
    answer = front.put(f"/v1/jobs/{ids['job_id']}", json=BODY, headers={"Authorization": f"Bearer {admin}"})
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")


def test_no_list_shows_what_is_anothers(mine: tuple[TestClient, dict[str, str]]) -> None:
    client, ids = mine
    lists = ("/v1/jobs", "/v1/batches", "/v1/webhooks/endpoints", "/v1/webhooks/deliveries", "/v1/events")
    for path in lists:
        text = client.get(path).text
        assert not [one for one in ids.values() if len(one) > 1 and one in text], path


def test_a_picture_of_anothers_upload_cannot_be_had(mine: tuple[TestClient, dict[str, str]]) -> None:
    client, ids = mine
    answer = client.post("/v1/jobs", json={**BODY, "init_image": ids["upload_id"]})
    assert (answer.status_code, answer.json()["code"]) == (404, "upload_not_found")


def test_an_input_of_anothers_job_cannot_be_named(mine: tuple[TestClient, dict[str, str]]) -> None:
    client, ids = mine
    named = [f"/v1/jobs/{job_id}/inputs/init_image" for job_id in (ids["job_id"], uuid4())]
    answers = [client.post("/v1/jobs", json={**BODY, "init_image": one}) for one in named]
    assert [(one.status_code, one.json()["code"]) for one in answers] == [(404, "job_not_found")] * 2


def test_every_route_documents_what_may_be_answered_before_it_is_asked(front: TestClient) -> None:
    for path, item in front.get("/openapi.json").json()["paths"].items():
        for verb, operation in item.items() if path.startswith("/v1/") else ():
            wanted = {"401", "403", "429", "503"} | (
                {"400", "408", "413", "415"} if "requestBody" in operation else set()
            )
            assert wanted <= operation["responses"].keys(), (verb, path)


def _never(ids: dict[str, str]) -> dict[str, str]:
    return {name: str(uuid4()) if name.endswith("_id") else one for name, one in ids.items()}
