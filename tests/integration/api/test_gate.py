"""Who is let in before any route is asked: names of the farm, pages of other sites, proxies; and what every answer says."""

import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from redis import Redis

from api.auth import keys
from api.auth.keys import NewKey, Scope
from api.main import create_app
from shared.infra.db import Database
from shared.settings import Settings
from tests.support.answers import post_job, problem
from tests.support.factories import DEMO
from tests.support.workshop import serving

EVIL = "evil.example"
SAFE = {"get", "head", "options"}
KEY = {"name": "attacker", "scopes": ["admin"]}


@pytest.fixture(scope="module")
def address(engines: Settings) -> Iterator[str]:
    with serving(engines.model_copy(update={"auth": "none"})) as address:
        yield address


@pytest.fixture
def http(address: str, announced: str, redis: Redis) -> Iterator[httpx.Client]:
    assert announced == DEMO
    assert redis.ping()
    with httpx.Client(base_url=address) as http:
        yield http


def app(settings: Settings, **changes: Any) -> TestClient:
    return TestClient(create_app(settings.model_copy(update=changes)), raise_server_exceptions=False)


def operations(client: Any) -> Iterator[tuple[str, str]]:
    for path, item in client.get("/openapi.json").json()["paths"].items():
        yield from ((verb, path) for verb in item if verb in {*SAFE, "post", "put", "patch", "delete"})


def test_a_name_that_leads_here_by_its_owners_will_opens_nothing(http: httpx.Client) -> None:
    """DNS rebinding: to the browser the page is of this origin."""
    pretending = {"Host": f"{EVIL}:8000", "Origin": f"http://{EVIL}:8000", "Sec-Fetch-Site": "same-origin"}
    refused = problem(http.post("/v1/keys", json=KEY, headers=pretending), 403, "host_not_allowed")
    assert "FARM_ALLOWED_HOSTS" in refused["detail"]
    assert http.get("/v1/keys").json()["keys"] == []
    for path in ("/v1/jobs", "/v1/webhooks/secret", "/", "/docs", "/openapi.json", "/metrics", "/web/js/main.js"):
        assert http.get(path, headers=pretending).status_code == 403, path
    dialect = http.get("/sdapi/v1/options", headers=pretending)
    assert (dialect.status_code, dialect.json()["error"]) == (403, "HTTPException")
    # What a page says of itself, nobody believes beside the name that it used.
    assert http.get("/v1/jobs", headers={**pretending, "X-Forwarded-Host": "localhost"}).status_code == 403


@pytest.mark.parametrize("host", [b"", b"localhost\r\nHost: evil.example", b"evil.example\r\nHost: localhost"])
def test_no_name_and_two_names_are_none(address: str, host: bytes) -> None:
    name, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((name, int(port)), timeout=30) as connection:
        connection.sendall(b"GET /v1/jobs HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.split(b" ")[1] in {b"403", b"400"}


def test_names_of_the_machine_and_listed_ones_are_answered(http: httpx.Client, settings: Settings) -> None:
    for host in ("localhost:1", "127.0.0.1", "[::1]:8000", "farm.localhost"):
        assert http.get("/v1/jobs", headers={"Host": host}).status_code == 200, host
    # Probes come by any name, and learn nothing.
    for path in ("/healthz", "/readyz"):
        assert http.get(path, headers={"Host": "10.0.0.7:8000"}).status_code == 200
    with app(settings, auth="none", allowed_hosts="farm.example") as named:
        assert named.get("/v1/jobs", headers={"Host": "farm.example"}).status_code == 200
        # A proxy that hides the name of its client: the pages of the farm by its name are its own.
        own = {"Host": "127.0.0.1:8000", "Origin": "https://farm.example", "Sec-Fetch-Site": "same-origin"}
        assert post_job(named, headers=own).status_code == 202


def test_nothing_that_a_page_of_another_site_sends_is_done(http: httpx.Client) -> None:
    walked = [(verb, path) for verb, path in operations(http) if verb not in SAFE]
    assert len(walked) > 40
    pages: list[dict[str, str]] = [
        {"Origin": f"http://{EVIL}"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ]
    for verb, path in walked:
        for page in pages:
            answer = http.request(
                verb, path.replace("{", "").replace("}", ""), headers={**page, "Content-Type": "text/plain"}
            )
            assert answer.status_code == 403, (verb, path, page)
            assert "FARM_CORS_ORIGINS" in answer.text
    job = post_job(http).json()["id"]
    problem(http.post(f"/v1/jobs/{job}/cancel", headers=pages[0]), 403, "cross_origin")
    assert http.get(f"/v1/jobs/{job}").json()["state"] == "queued"
    assert http.post(f"/v1/jobs/{job}/cancel", headers={"Sec-Fetch-Site": "none"}).json()["state"] == "canceled"


def test_the_farms_own_pages_and_those_that_are_listed_may(http: httpx.Client, settings: Settings) -> None:
    own = {"Origin": str(http.base_url), "Sec-Fetch-Site": "same-origin"}
    assert post_job(http, headers=own).status_code == 202
    listed = {"Origin": "https://paint.example", "Sec-Fetch-Site": "cross-site"}
    with app(settings, cors_origins="https://paint.example") as opened:
        answer = post_job(opened, headers=listed)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (202, "https://paint.example")
        problem(post_job(opened, headers={"Origin": f"https://{EVIL}"}), 403, "cross_origin")


def test_with_keys_only_what_a_browser_adds_by_itself_can_be_forged(settings: Settings, db: Database) -> None:
    with db.transaction() as session:
        token = keys.create(session, NewKey(name="n", scopes=frozenset({Scope.SUBMIT})))[1].text
    page = {"Origin": f"https://{EVIL}", "Sec-Fetch-Site": "cross-site"}
    bearer = {"Authorization": f"Bearer {token}"}
    with app(settings, auth="keys", default_checkpoint=DEMO) as farm:
        problem(farm.post("/v1/jobs/retry", json={}, headers=page, auth=("any", token)), 403, "cross_origin")
        assert farm.post("/v1/jobs/retry", json={}, headers={**page, **bearer}).status_code == 202
        assert farm.post("/v1/jobs/retry", json={}, headers={**bearer, "Host": "any.example"}).status_code == 202
    with app(settings, auth="keys", allowed_hosts="farm.example") as named:
        problem(named.get("/v1/jobs", headers={**bearer, "Host": EVIL}), 403, "host_not_allowed")


def test_only_a_trusted_proxy_is_believed(settings: Settings) -> None:
    said = {"X-Forwarded-Host": "farm.example", "X-Forwarded-Prefix": "/sd", "X-Forwarded-Proto": "https"}
    changes = {"auth": "none", "allowed_hosts": "farm.example", "trusted_proxies": "10.1.0.0/16"}
    wanted = create_app(settings.model_copy(update=changes))
    for client, location in (("10.1.2.3", "/sd/v1/jobs"), ("10.2.2.3", "/v1/jobs")):
        with TestClient(wanted, client=(client, 1), follow_redirects=False) as proxied:
            assert proxied.get("/v1/jobs/", headers=said).headers["location"] == location
    with TestClient(wanted, client=("10.1.2.3", 1)) as proxied:
        # The name that the proxy was asked for counts, too.
        assert proxied.get("/v1/jobs", headers={**said, "X-Forwarded-Host": EVIL}).status_code == 403
        page = {**said, "Host": "127.0.0.1", "Origin": "https://farm.example"}
        assert proxied.post("/v1/jobs/retry", json={}, headers=page).status_code == 202
    for prefix in ("//evil.example", "/a/../b", "x", "/v1\\"):
        with TestClient(wanted, client=("10.1.2.3", 1), follow_redirects=False) as proxied:
            assert (
                proxied.get("/v1/jobs/", headers={**said, "X-Forwarded-Prefix": prefix}).headers["location"]
                == "/v1/jobs"
            )


def test_every_answer_forbids_sniffing_and_frames(http: httpx.Client, settings: Settings) -> None:
    crashing = create_app(settings)
    crashing.add_api_route("/crash", lambda: 1 // 0)
    answers: list[Any] = [
        http.get(path) for path in ("/", "/docs", "/redoc", "/openapi.json", "/web/js/main.js", "/v1/jobs", "/none")
    ]
    answers += [
        http.get("/v1/jobs", headers={"Host": EVIL}),
        TestClient(crashing, raise_server_exceptions=False).get("/crash"),
    ]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff", answer.request.url
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"], answer.request.url
    assert answers[-1].status_code == 500


def test_readiness_tells_strangers_no_addresses(settings: Settings) -> None:
    with app(settings, s3_endpoint_url="http://127.0.0.1:9/secret-place") as farm:
        answer = farm.get("/readyz")
    assert answer.status_code == 503
    assert not answer.json()["dependencies"]["storage"]["ok"]
    assert "127.0.0.1" not in answer.text
    assert "secret-place" not in answer.text
