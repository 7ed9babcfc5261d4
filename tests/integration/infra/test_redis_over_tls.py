"""Redis behind a port that speaks TLS only: the bytes on the wire, who is trusted, and what the others are told."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from pydantic import SecretStr

from api.cli import checks
from api.cli.checks import Finding, Level
from deploy.standalone import ports
from shared.errors import BrokerUnavailable
from shared.infra import broker
from shared.settings import Settings
from tests.support import farm as running_farm
from tests.support import parts, redis_servers
from tests.support.redis_servers import HELLO, Certificate, Wire
from tests.support.waiting import LIMIT_S

MANY = 8  # connections, of three processes and the doctor


@dataclass(frozen=True, slots=True)
class Secured:
    """A Redis behind TLS, whose certificate is for `localhost`."""

    wire: Wire
    plain_port: int
    password: str
    certificate: Certificate

    def url(self, *parameters: str, scheme: str = "rediss", host: str = "localhost", port: int = 0) -> str:
        query = "&".join(parameters)
        return f"{scheme}://:{self.password}@{host}:{port or self.wire.port}/0{'?' if query else ''}{query}"

    @property
    def trusted(self) -> str:
        return f"ssl_ca_certs={self.certificate.cert}"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("tls")
    certificate = Certificate.made(folder, "localhost")
    with redis_servers.running(folder) as url:
        plain = urlsplit(url)
        assert plain.port
        assert plain.password
        with redis_servers.behind_tls(plain.port, certificate, folder) as door, redis_servers.tapped(door) as wire:
            yield Secured(wire, plain.port, plain.password, certificate)


@pytest.fixture
def wire(secured: Secured) -> Wire:
    secured.wire.said.clear()
    return secured.wire


async def asked_by_a_waiting_room(settings: Settings) -> None:
    redis = broker.connect_async(settings)
    try:
        await redis.ping()
    finally:
        await redis.aclose()


def asked(url: str, client: str) -> None:
    """Have Redis asked by one of the clients of the farm. Raises what they raise."""
    settings = Settings(redis_url=SecretStr(url), connect_seconds=30)
    if client == "celery":
        with broker.celery_app(settings) as app:
            broker.check_doorbells(app)
    elif client == "redis-py":
        with broker.connect(settings) as redis:
            broker.check(redis)
    else:
        asyncio.run(asked_by_a_waiting_room(settings))


@pytest.mark.parametrize("client", ["celery", "redis-py", "asyncio"])
@pytest.mark.parametrize("how", ["CERT_REQUIRED", "none"])
def test_every_client_encrypts(secured: Secured, wire: Wire, client: str, how: str) -> None:
    trusted = () if how == "none" else (secured.trusted,)
    asked(secured.url(f"ssl_cert_reqs={how}", *trusted), client)
    assert wire.openings() == {HELLO}
    assert not wire.has_heard(secured.password)


@pytest.mark.parametrize("client", ["celery", "redis-py"])
@pytest.mark.parametrize(
    ("scheme", "host", "trusts", "says"),
    [
        ("rediss", "localhost", False, "a certificate that this machine does not trust"),
        ("rediss", "127.0.0.1", True, "a certificate for another host"),
        ("redis", "localhost", False, "breaks off the connection"),
    ],
    ids=["stranger", "another host", "plain"],
)
def test_a_wire_that_is_not_safe_is_refused_in_a_line(
    secured: Secured, client: str, scheme: str, host: str, trusts: bool, says: str
) -> None:
    with pytest.raises(BrokerUnavailable, match=says) as refused:
        asked(secured.url(*[secured.trusted] * trusts, scheme=scheme, host=host), client)
    assert "FARM_REDIS_URL" in refused.value.fix
    assert "\n" not in str(refused.value)
    assert secured.password not in str(refused.value.log_fields)


def test_a_redis_may_want_a_certificate_of_its_clients(secured: Secured, tmp_path: Path) -> None:
    me = Certificate.made(tmp_path, "client")
    with redis_servers.behind_tls(secured.plain_port, secured.certificate, tmp_path, me) as door:
        for client in ("celery", "redis-py"):
            asked(secured.url(secured.trusted, f"ssl_certfile={me.cert}", f"ssl_keyfile={me.key}", port=door), client)
            with pytest.raises(BrokerUnavailable, match=r"certificate of its clients|breaks off") as refused:
                asked(secured.url(secured.trusted, port=door), client)
            assert "ssl_certfile" in refused.value.fix


def test_the_doctors_doorbell_leaves_nothing_behind(secured: Secured) -> None:
    url = secured.url(secured.trusted)
    asked(url, "celery")
    with broker.connect(Settings(redis_url=SecretStr(url))) as redis:
        redis.delete("farm:probe")
        assert list(redis.scan_iter()) == []


@pytest.mark.usefixtures("db")
def test_a_farm_says_nothing_in_plain_text(
    secured: Secured, wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_REDIS_URL", secured.url(secured.trusted))
    port = ports.pick("127.0.0.1")
    with ExitStack() as farm:
        for name, argv in {"api": (*parts.API, str(port)), "courier": parts.COURIER, "gpu": parts.worker()}.items():
            (tmp_path / name).mkdir()
            farm.enter_context(parts.running(argv, tmp_path / name))
        http = farm.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S))
        job_id = running_farm.submit(http, steps=1)
        assert running_farm.ended(http, job_id)["state"] == "succeeded"
        assert http.get("/readyz").json()["dependencies"]["redis"] == {"ok": True, "detail": "answers"}
        assert checks.redis() == Finding("redis", Level.OK, "AOF on, noeviction")
    assert wire.openings() == {HELLO}
    assert not wire.has_heard(secured.password)
    assert len(wire.said) > MANY


def test_the_doctor_says_whom_to_trust(secured: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_REDIS_URL", secured.url())
    found = checks.redis()
    assert (found.level, found.detail.splitlines()) == (Level.FAIL, [found.detail])
    assert "?ssl_ca_certs=FILE" in found.fix
