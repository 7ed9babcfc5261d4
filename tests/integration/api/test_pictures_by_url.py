"""Init images and masks that a submission names by URL: fetched under guard, before the job exists."""

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from redis import Redis

from api.limits.workrooms import Workroom
from api.main import create_app
from api.picture_intake import PictureIntake
from shared.errors import TooBusy
from shared.files import pictures
from shared.infra.outbound_http import OutboundHttp
from shared.settings import Settings
from tests.support.factories import BODY
from tests.support.servers import Handler, Server

RED = pictures.to_png(Image.new("RGB", (64, 48), "red"))


class Site(Handler):
    def do_GET(self) -> None:
        self.remember()
        if self.path == "/red.png":
            self.answer(200, RED)
        elif self.path == "/mask.png":
            self.answer(200, pictures.to_png(Image.new("L", (64, 48), 255)))
        elif self.path == "/page":
            self.answer(200, b"<html>")
        else:
            self.answer(404)


@pytest.fixture
def site() -> Iterator[Server]:
    server = Server(Site)
    yield server
    server.stop()


@pytest.fixture(params=[True])
def client(request: Any, engines: Settings, announced: str, redis: Redis) -> Iterator[TestClient]:
    settings = engines.model_copy(update={"allow_private_urls": request.param})
    assert announced
    assert redis.ping()
    with TestClient(create_app(settings)) as opened:
        yield opened


def test_a_url_gives_the_same_job_as_the_file_itself(client: TestClient, site: Server) -> None:
    named = client.post(
        "/v1/jobs", json={**BODY, "init_image": f"{site.url}/red.png", "mask_image": f"{site.url}/mask.png"}
    )
    assert named.status_code == 202, named.text
    sent = client.post("/v1/jobs", json={**BODY, "init_image": _base64(RED)})
    assert named.json()["params"]["init_image"] == sent.json()["params"]["init_image"]
    assert named.json()["params"]["mask_image"]


@pytest.mark.parametrize(("path", "code"), [("/nothing", "url_unreachable"), ("/page", "bad_picture")])
def test_what_cannot_be_had_makes_no_job(client: TestClient, site: Server, path: str, code: str) -> None:
    refused = client.post("/v1/jobs", json={**BODY, "init_image": site.url + path})
    assert (refused.status_code, refused.json()["code"]) == (422, code)
    assert refused.json()["detail"].startswith("init_image: ")
    assert client.get("/v1/jobs").json()["jobs"] == []


@pytest.mark.parametrize("client", [False], indirect=True)
def test_loopback_is_blocked_unless_allowed(client: TestClient, site: Server) -> None:
    refused = client.post("/v1/jobs", json={**BODY, "init_image": f"{site.url}/red.png"})
    assert (refused.status_code, refused.json()["code"]) == (422, "url_blocked")
    assert site.asked == []


def test_no_more_is_decoded_at_once_than_the_api_can_bear() -> None:
    outside, room = OutboundHttp(allow_private=True), Workroom("decoding", 4, patience_s=0.01)
    intake = PictureIntake(outside, room, max_bytes=2**20, fetch_s=10)
    with pytest.raises(TooBusy, match="decoding"), intake.decoding(), intake.decoding(), intake.decoding():
        pytest.fail("an owner decodes at most as much as it leaves to others")
    assert room.held == {}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
