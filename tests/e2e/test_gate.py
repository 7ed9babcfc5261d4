"""A farm on a laptop, with pages of other sites in the browser beside it; and a farm that nginx serves beneath a path."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from redis import Redis

from api.cli import main
from api.client import Farm, Job
from shared.infra.db import Database
from shared.infra.outbound_http import OutboundHttp
from shared.settings import Settings
from tests.support import nginx
from tests.support.answers import post_job
from tests.support.factories import BODY, DEMO
from tests.support.parts import ROOT
from tests.support.receiver import receiving
from tests.support.servers import Handler, Server
from tests.support.waiting import LIMIT_S
from tests.support.workshop import serving, working
from worker.courier.webhooks import Courier

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PREFIX = "/sd"
# Their owner lets them lead to this machine.
EVIL, STRANGER = "evil.example", "stranger.example"
# What a page can have a browser send to another site without being allowed to: the ways there are, one after another.
FORGE = """async (urls) => {
  for (const url of urls) {
    await fetch(url, { method: "POST", mode: "no-cors", credentials: "include" }).catch(() => null);
    await fetch(url, { method: "POST", mode: "no-cors", body: '{"scopes":["admin"],"name":"x"}' }).catch(() => null);
    navigator.sendBeacon(url, "");
    const frame = Object.assign(document.createElement("iframe"), { name: "hidden" });
    const form = Object.assign(document.createElement("form"), { method: "post", action: url, target: "hidden" });
    document.body.append(frame, form);
    const done = new Promise((resolve) => (frame.onload = frame.onerror = resolve));
    form.submit();
    await Promise.race([done, new Promise((resolve) => setTimeout(resolve, 3000))]);
    frame.remove();
    form.remove();
  }
}"""
# A page of a name that leads to the farm: for the browser they are one site.
REBOUND = """async () => {
  const json = { "Content-Type": "application/json" };
  const asked = [
    ["/v1/keys", { method: "POST", headers: json, body: JSON.stringify({ name: "attacker", scopes: ["admin"] }) }],
    ["/v1/keys", { headers: { "X-Forwarded-Host": "localhost" } }],
    ["/v1/jobs", {}],
    ["/sdapi/v1/txt2img", { method: "POST", headers: json, body: "{}" }],
    ["/metrics", {}],
  ];
  return Promise.all(asked.map(async ([path, options]) => (await fetch(path, options)).status));
}"""


class Hostile(Handler):
    def do_GET(self) -> None:
        self.answer(200, b"<!doctype html><title>Win a prize</title><body>", Content_Type="text/html")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here: install the system's package chromium")
    with sync_playwright() as playwright:
        leads_here = "--host-resolver-rules=MAP *.example 127.0.0.1"
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", leads_here])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.new_context() as context:
        context.set_default_timeout(LIMIT_S * 1000)
        yield context.new_page()


@pytest.fixture(scope="module")
def laptop(engines: Settings) -> Iterator[str]:
    with serving(engines.model_copy(update={"auth": "none"})) as address:
        yield address


@pytest.fixture
def here(laptop: str, announced: str, redis: Redis) -> Iterator[httpx.Client]:
    assert announced == DEMO
    assert redis.ping()
    with httpx.Client(base_url=laptop) as http:
        yield http


@pytest.mark.parametrize("host", [STRANGER, "127.0.0.1"], ids=["another site", "another port"])
def test_a_page_of_another_origin_changes_nothing(page: Page, laptop: str, here: httpx.Client, host: str) -> None:
    job = post_job(here).json()["id"]
    paths = [f"/v1/jobs/{job}/cancel", "/v1/workers/gpu0@test/drain", "/v1/keys", "/sdapi/v1/interrupt"]
    statuses: list[tuple[str, int]] = []
    page.on("response", lambda answer: statuses.append((answer.url, answer.status)))
    hostile = Server(Hostile)
    try:
        page.goto(f"http://{host}:{hostile.server_port}/")
        page.evaluate(FORGE, [laptop + path for path in paths])
    finally:
        hostile.stop()
    answered = [status for url, status in statuses if url.startswith(laptop)]
    assert len(answered) >= 3 * len(paths), statuses
    assert set(answered) == {403}, statuses
    assert here.get(f"/v1/jobs/{job}").json()["state"] == "queued"
    (worker,) = here.get("/v1/workers").json()["workers"]
    assert worker["draining_at"] is None
    assert here.get("/v1/keys").json()["keys"] == []


def test_a_name_that_leads_to_the_farm_opens_nothing(page: Page, laptop: str, here: httpx.Client) -> None:
    port = laptop.rpartition(":")[2]
    opened = page.goto(f"http://{EVIL}:{port}/")
    assert opened is not None
    assert (opened.status, opened.json()["code"]) == (403, "host_not_allowed")
    assert set(page.evaluate(REBOUND)) == {403}
    assert here.get("/v1/keys").json()["keys"] == []
    assert here.get("/v1/jobs").json()["jobs"] == []


@pytest.fixture(scope="module", params=[True, False], ids=["taken off", "left"])
def beneath(
    request: pytest.FixtureRequest, engines: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of a farm beneath a path that its proxy takes off, or leaves."""
    folder = tmp_path_factory.mktemp("proxy") / "nginx"
    settings = engines.model_copy(update={"root_path": PREFIX, "allow_private_urls": True})
    with (
        working(settings),
        serving(settings) as farm,
        nginx.in_front_of(farm, PREFIX, folder, strips=request.param) as address,
    ):
        yield address


def test_the_console_works_beneath_a_path(page: Page, beneath: str, announced: str, redis: Redis) -> None:
    assert announced
    assert redis.ping()
    wrong: list[str] = []
    page.on("response", lambda answer: wrong.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(beneath)  # without a slash
    page.locator("[data-field=sampler] option[value=ddim]").wait_for(state="attached")
    page.get_by_label("Prompt", exact=True).fill("a red circle on a blue background")
    for name, value in {"width": "64", "height": "64", "steps": "4"}.items():
        box = page.locator(f"[data-field={name}] input").first
        box.fill(value)
        box.dispatch_event("change")
    page.get_by_label("Prompt", exact=True).press("Control+Enter")
    picture = page.locator("job-card[data-state=succeeded] img:not(.preview)")
    picture.wait_for()
    assert picture.evaluate("async (image) => { await image.decode(); return image.naturalWidth }") == 64
    # Drawing the whole document takes a busy machine a minute; that its script has come and asks for it is enough.
    with page.expect_response(f"{beneath}/openapi.json", timeout=LIMIT_S * 1000):
        page.get_by_role("link", name="API").click()
    assert page.url == f"{beneath}/docs"
    assert wrong == []


def test_every_address_that_the_farm_writes_leads_back(beneath: str, announced: str, redis: Redis) -> None:
    assert announced
    assert redis.ping()
    origin = beneath.removesuffix(PREFIX)
    with httpx.Client(base_url=origin) as http:
        submitted = http.post(f"{PREFIX}/v1/jobs?wait=60", json={**BODY, "num_images": 1})
        job = submitted.json()
        assert submitted.headers["location"] == f"{PREFIX}/v1/jobs/{job['id']}"
        assert job["images"][0]["url"].startswith(f"{PREFIX}/v1/jobs/")
        shown = http.get(submitted.headers["location"]).json()
        picture = shown["images"][0]["url"]
        assert http.get(picture, follow_redirects=True).content.startswith(b"\x89PNG")
        assert http.head(picture, follow_redirects=True).status_code == 200  # the storage takes what it was signed for
        assert f'"url":"{PREFIX}/v1/jobs/' in http.get(f"{PREFIX}/v1/jobs/{job['id']}/events").text
        assert http.get(f"{PREFIX}/v1/jobs/").headers["location"] == f"{PREFIX}/v1/jobs"
        assert http.head(f"{PREFIX}/v1/jobs").status_code == 200
        assert http.get(f"{PREFIX}/openapi.json").json()["servers"] == [{"url": PREFIX}]
        docs = http.get(f"{PREFIX}/docs").text
        addresses = re.findall(r'(?:src|href)="([^"]+)"|url: \'([^\']+)\'', docs)
        assert len(addresses) >= 3
        assert {http.get(one or other).status_code for one, other in addresses} == {200}
        assert http.get(f"{PREFIX}/sdapi/v1/options/").status_code == 200


def test_clients_work_beneath_a_path(beneath: str, announced: str, redis: Redis, tmp_path: Path) -> None:
    assert announced
    assert redis.ping()
    with Farm(beneath, api_key=None) as farm:
        job = farm.submit(**BODY)
        assert isinstance(list(farm.stream(job.id))[-1], Job)
        assert farm.image(farm.job(job.id)).startswith(b"\x89PNG")
        assert farm.upload(b"x")
    file = tmp_path / "picture.png"
    command = ["render", BODY["prompt"], "--size", "64", "--steps", "4", "--output", str(file)]
    assert main(["--url", beneath, *command]) == 0
    assert file.read_bytes().startswith(b"\x89PNG")
    if shutil.which("node"):
        program = re.search(r"^```js submit\n(.*?)^```", (ROOT / "docs/jobs.md").read_text(), re.MULTILINE | re.DOTALL)
        assert program is not None
        text = program[1].replace("http://localhost:8000", beneath)
        done = subprocess.run(
            ["node", "--input-type=module", "--eval", text], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr


def test_webhooks_tell_addresses_beneath_the_path(
    beneath: str, announced: str, redis: Redis, db: Database, engines: Settings
) -> None:
    assert announced
    assert redis.ping()
    courier = Courier(db, OutboundHttp(allow_private=True), engines)
    with receiving() as receiver, httpx.Client(base_url=beneath, timeout=60) as http:
        hook = {"url": f"{receiver.url}/", "events": ["job.succeeded"]}
        job = http.post("/v1/jobs?wait=60", json={**BODY, "webhook": hook}).json()
        assert job["state"] == "succeeded"
        courier.hand_out()
        body = receiver.next().body.decode()
        courier.stop()
    assert f'"url":"{PREFIX}/v1/jobs/{job["id"]}/images/0"' in body.replace('": "', '":"')
