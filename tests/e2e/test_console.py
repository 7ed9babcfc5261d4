"""The console in a real browser, against a real api and a real engine on the demo checkpoint.

In every test: no error on the browser's console, and no request to another host.
"""

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import (
    APIResponse,
    Browser,
    ConsoleMessage,
    Locator,
    Page,
    Request,
    Route,
    expect,
    sync_playwright,
)
from pydantic import BaseModel, ValidationError
from redis import Redis
from safetensors.torch import save_file
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from api.admission.submissions import Submission
from api.auth import keys
from api.auth.keys import NewKey, Scope
from shared.errors import InvalidRequest
from shared.files.weights import Shelves
from shared.fleet import holdings, registry
from shared.fleet.holdings import Holding, Tier
from shared.infra.db import Database
from shared.infra.outbound_http import OutboundHttp
from shared.infra.storage import Storage
from shared.infra.tables import Base, ImageRow, JobRow, KeyRow
from shared.jobs import lifecycle
from shared.jobs.lifecycle import FinishedImage
from shared.jobs.outbox import ENDINGS
from shared.settings import Settings
from shared.webhooks import endpoints
from tests.support import adapters, studio
from tests.support.factories import DEMO, params
from tests.support.parts import ROOT
from tests.support.receiver import receiving
from tests.support.workshop import serving, working
from worker.courier.webhooks import Courier

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install the system's package chromium")

expect.set_options(timeout=30_000)

PROMPT = "a red circle on a blue background"
# What the middle and a corner of the shown picture look like, as the browser draws it.
PIXELS = """async image => {
  await image.decode();  // it has its size before it has a pixel
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0);
  const at = (x, y) => [...pen.getImageData(x, y, 1, 1).data.slice(0, 3)];
  return [at(canvas.width / 2, canvas.height / 2), at(4, 4)];
}"""
# The picture in the making, as text that tells one from another.
PREVIEW = """() => {
  const image = document.querySelector("img.preview");
  if (!image?.complete || !image.naturalWidth) return null;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  canvas.getContext("2d").drawImage(image, 0, 0);
  return canvas.toDataURL();
}"""
# How much has moved by itself so far, as browsers count it, and which pictures are held in memory. What browsers keep from pages
# of plain HTTP, as farms in a house are served, they keep from these too. Notes stay until a test has come to read them.
SHIFTS = """
delete Crypto.prototype.randomUUID;
window.shifted = 0;
window.pictures = new Set();
const wait = window.setTimeout;
window.setTimeout = (act, ms, ...more) => wait(act, ms === 4000 ? 60_000 : ms, ...more);
const { createObjectURL, revokeObjectURL } = URL;
URL.createObjectURL = (blob) => {
  const url = createObjectURL(blob);
  pictures.add(url);
  return url;
};
URL.revokeObjectURL = (url) => {
  pictures.delete(url);
  revokeObjectURL(url);
};
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifted += entry.value;
}).observe({ type: "layout-shift", buffered: true });
"""
DROP = """([target, text]) => {
  const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
  document.querySelector(target).dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
}"""


# Bodies of jobs as the form makes them, by field: with each value at its limits, and beyond them.
EDGES = """async () => {
  const { FIELDS, fresh, submission, TEXTS } = await import("/web/js/fields.js");
  const start = { ...fresh(), prompt: "a", hires: true, variation_strength: 0.5 };
  const bodies = (name, value) => [{}, { init: "aGk=", mask: "aGk=" }].map(
    (pictures) => submission({ ...start, [name]: value }, pictures));
  const numbers = ({ low, high, step, start }) => [[low, high, start], [low - step, high + step]];
  const choices = ({ options, start }) => [options ?? [start], ["no such name", "x".repeat(101)]];
  const kinds = { number: numbers, choice: choices, flag: () => [[true, false], []] };
  const text = (box) => [["x".repeat(box.maxLength)], ["x".repeat(box.maxLength + 1)]];
  const boxes = [...document.querySelectorAll("form.form .field.prompt textarea")].map(
    (box, index) => [TEXTS[index], text(box)]);
  const fields = Object.entries(FIELDS).map(([name, field]) => [name, kinds[field.kind](field)]);
  const made = (name, values) => values.map((value) => [String(value), bodies(name, value)]);
  return [...boxes, ...fields].map(([name, [inside, outside]]) => [name, made(name, inside), made(name, outside)]);
}"""
# Bounds of the number fields of the form for a new key.
KEY_LIMITS = """async () => {
  const { words } = await import("/web/js/words.js");
  const labels = Object.entries(words.farm.keyLimits);
  return [...document.querySelectorAll(".new-key .field")].map((field) => {
    const { min, max } = field.querySelector("input");
    return [labels.find(([, label]) => label === field.querySelector("label").textContent)[0], Number(min), Number(max)];
  });
}"""


@pytest.fixture(scope="module")
def shelves(tmp_path_factory: pytest.TempPathFactory) -> Shelves:
    """A LoRA that makes red blue, and an embedding that reads as "red circle"."""
    loras, embeddings = (tmp_path_factory.mktemp(name) for name in ("loras", "embeddings"))
    adapters.written(loras / "swap.safetensors", adapters.recoloring("red", "blue"))
    tokens = studio.demo().tokenizer("red circle", add_special_tokens=False).input_ids
    vectors = studio.demo().text_encoder.get_input_embeddings().weight[tokens]
    save_file({"emb_params": vectors.detach().clone()}, embeddings / "rubyball.safetensors")
    return Shelves.at(loras=loras, embeddings=embeddings, context_width=adapters.WIDTH)


@pytest.fixture(scope="module")
def address(engines: Settings, shelves: Shelves) -> Iterator[str]:
    with working(engines, shelves=shelves), serving(engines) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # No sandbox: tests may run as root, and the only pages are our own.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, address: str, announced: str, redis: Redis) -> Iterator[Page]:
    """The console, open and ready, of a farm that has done nothing yet."""
    assert announced
    assert redis.ping()
    with opened(browser, address) as page:
        yield page


@contextmanager
def opened(browser: Browser, address: str, *forgiven: str, script: str = "") -> Iterator[Page]:
    """Open the console, and wait until its form has its choices."""
    with watched(browser, address, *forgiven) as page:
        page.add_init_script(script)
        page.goto(address)
        page.locator("[data-field=sampler] option[value=ddim]").wait_for(state="attached")
        yield page


@contextmanager
def watched(browser: Browser, address: str, *forgiven: str) -> Iterator[Page]:
    """Open a page that must neither complain nor call another host. What it is refused on purpose is `forgiven`."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(60_000)
    page.add_init_script(SHIFTS)
    complaints: list[str] = []
    strangers: list[str] = []
    accepted = ("ERR_INTERNET_DISCONNECTED", *forgiven)

    def hear(message: ConsoleMessage) -> None:
        if message.type == "error" and not any(text in message.text for text in accepted):
            complaints.append(message.text)

    page.on("console", hear)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: (
            strangers.append(request.url) if not request.url.startswith((address, "blob:", "data:")) else None
        ),
    )
    yield page
    page.close()
    assert complaints == []
    assert strangers == []


def write(page: Page, **values: Any) -> None:
    """Set some fields of the form as a user does."""
    for name, value in values.items():
        box = page.locator(f"[data-field={name}] input").first
        box.fill(str(value))
        box.dispatch_event("change")


def generate(page: Page, prompt: str = PROMPT, **values: Any) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    write(page, **{"width": 128, "height": 128, "steps": 12, "seed": 42, **values})
    page.get_by_label("Prompt", exact=True).press("Control+Enter")


def test_a_prompt_becomes_its_picture(page: Page) -> None:
    page.get_by_role("button", name="Fast").click()
    generate(page)
    picture = page.locator("job-card[data-state=succeeded] img:not(.preview)")
    picture.wait_for()
    middle, corner = picture.evaluate(PIXELS)
    assert middle[0] > 150 > max(middle[1:]), middle
    assert corner[2] > 150 > max(corner[:2]), corner
    page.reload()
    page.locator("job-card[data-state=succeeded]").wait_for()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(PROMPT)


def bottom(card: Locator) -> float:
    box = card.bounding_box()
    assert box is not None
    return box["y"] + box["height"]


def test_a_render_is_canceled(page: Page) -> None:
    generate(page, steps=1, width=64, height=64)
    finished(page)
    generate(page, steps=150, width=512, height=512)
    page.locator("job-card[data-state=running]").wait_for()
    page.get_by_role("button", name="Cancel").click()
    card = page.locator("job-card[data-state=canceled]")
    card.wait_for()
    expect(card.locator("progress")).to_be_hidden()
    # It leaves no gap beside the picture in its row, and holds no place where it is alone.
    assert bottom(card) == bottom(finished(page))
    page.set_viewport_size({"width": 360, "height": 740})
    expect(card.locator(".frame")).to_have_css("height", "0px")


def test_what_users_write_is_text(page: Page) -> None:
    hostile = "<img src=x onerror=alert(1)> \u202eevil\u202c 🟥"
    generate(page, hostile, steps=1, width=64, height=64)
    card = page.locator("job-card")
    expect(card.locator("p.text")).to_have_text(hostile)
    page.locator("job-card[data-state=succeeded]").wait_for()
    assert page.locator("p.text img").count() == 0


def test_a_dropped_png_fills_the_form(page: Page, address: str) -> None:
    generate(page, seed=1234)
    page.locator("job-card[data-state=succeeded]").wait_for()
    job = page.request.get(f"{address}/v1/jobs").json()["jobs"][0]
    png = page.request.get(f"{address}{job['images'][0]['url']}?inline=true").body()
    page.get_by_role("button", name="Reset", exact=True).click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("")
    page.evaluate(DROP, ["create-page", base64.b64encode(png).decode()])
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(PROMPT)
    expect(page.locator("[data-field=seed] input").first).to_have_value("1234")


def test_a_corrupt_drop_is_refused_with_a_sentence(page: Page) -> None:
    page.evaluate(DROP, ["create-page", base64.b64encode(b"no picture").decode()])
    expect(page.locator("#notes .error")).to_contain_text("not an image")


def test_the_gallery_shows_filters_and_deletes(page: Page) -> None:
    generate(page, steps=1, width=64, height=64)
    page.locator("job-card[data-state=succeeded]").wait_for()
    page.get_by_role("link", name="Gallery").click()
    page.locator(".tile img").wait_for()
    page.locator(".tile button.picture").first.click()
    expect(page.locator("dialog dl")).to_contain_text("Seed")
    page.locator("dialog img").wait_for()
    page.once("dialog", lambda dialog: dialog.accept())
    page.locator("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator(".tile")).to_have_count(0)
    page.get_by_label("Search prompts").fill("nothing like it")
    expect(page.locator("gallery-page")).to_contain_text("No images here yet.")


def test_the_farms_page_shows_queue_and_workers(page: Page) -> None:
    page.get_by_role("link", name="Farm").click()
    expect(page.get_by_role("region", name="Worker", exact=True)).to_contain_text("farm-demo")
    expect(page.locator(".panel")).to_have_count(6)


def test_losing_the_connection_is_told_and_healed(page: Page) -> None:
    page.context.set_offline(True)
    expect(page.locator("farm-connection")).to_contain_text("cannot be reached")
    page.context.set_offline(False)
    expect(page.locator("farm-connection")).not_to_contain_text("cannot be reached")


@pytest.mark.usefixtures("address", "announced", "redis")
def test_what_does_not_arrive_is_kept_and_sent_once_when_the_farm_is_back(browser: Browser, engines: Settings) -> None:
    with ExitStack() as closing, serving(engines) as address:
        page = closing.enter_context(opened(browser, address, "ERR_CONNECTION_REFUSED", "ERR_EMPTY_RESPONSE"))
        generate(page, "a green square", steps=1, width=64, height=64)
        finished(page).locator("img:not(.preview)").wait_for()
        away = closing.pop_all()
    with away:
        generate(page, "a yellow star", steps=1, width=64, height=64)
        waiting = page.locator("job-card[data-state=waiting]")
        expect(waiting).to_contain_text("Waiting to be sent")
        expect(page.locator("farm-connection")).to_contain_text("cannot be reached")
        generate(page, "a blue triangle", steps=1, width=64, height=64)
        sweep(page, x=("steps", "1, 2")).click()
        expect(page.locator("sweep-grid[data-state=waiting]")).to_be_visible()
        expect(waiting).to_have_count(2)
        # Pictures that the browser has kept do not tell that the farm is there, and pages that it has not are told.
        page.get_by_role("link", name="Farm").click()
        expect(page.locator("#notes")).to_contain_text("cannot be reached")
        page.get_by_role("link", name="Create").click()
        expect(waiting).to_have_count(2)
        waiting.filter(has_text="blue triangle").get_by_role("button", name="Discard").click()
        expect(waiting).to_have_count(1)
        expect(page.get_by_text("Connected again.")).to_have_count(0)
        with serving(engines, port=int(address.rpartition(":")[2])):
            expect(page.get_by_text("Connected again.")).to_be_visible()
            expect(page.locator("job-card[data-state=succeeded]")).to_have_count(2)
            expect(page.locator("sweep-grid")).to_contain_text("2 of 2 done")
            jobs = page.request.get(f"{address}/v1/jobs").json()["jobs"]
            prompts = sorted(job["params"]["prompt"] for job in jobs)
            assert prompts == [*["a blue triangle"] * 2, "a green square", "a yellow star"]


@pytest.mark.usefixtures("announced", "redis")
def test_a_lost_answer_is_asked_for_again_after_a_reload_and_makes_one_job(browser: Browser, address: str) -> None:
    arrived: list[APIResponse] = []

    def lose(route: Route) -> None:
        if route.request.method != "PUT":
            route.continue_()
        elif arrived:
            busy = {"code": "too_busy", "detail": "The api is busy."}
            route.fulfill(status=503, headers={"Retry-After": "1"}, json=busy)
        else:
            arrived.append(route.fetch())
            route.abort("connectionreset")

    with opened(browser, address, "ERR_CONNECTION_RESET", "503") as page:
        page.route("**/v1/jobs/*", lose)
        generate(page, steps=1, width=64, height=64)
        expect(page.get_by_text("It is kept in this browser")).to_be_visible()
        # A farm that is too busy refuses nothing either.
        generate(page, "a yellow star", steps=1, width=64, height=64)
        waiting = page.locator("job-card[data-state=waiting]", has_text="yellow")
        expect(waiting).to_contain_text("The api is busy.")
        page.unroute("**/v1/jobs/*")
        page.reload()
        finished(page, 2)
        assert len(page.request.get(f"{address}/v1/jobs").json()["jobs"]) == 2
        page.reload()
        finished(page, 2)
        expect(page.locator("job-card")).to_have_count(2)


# A sweep that waits in the browser since before the farm has forgotten the keys of that time.
STALE = """async ([template, grid]) => {
  const store = await import("/web/js/store.js");
  const about = { name: "old", sweep: [{ parameter: "steps", values: grid.steps }], total: grid.steps.length };
  const at = Date.now() - 48 * 3600 * 1000;
  const more = { by: "", at, refusal: null, isLate: true, about };
  await store.put("submissions", { id: "stale", kind: "batch", body: { name: "old", template, grid }, ...more });
}"""


def test_a_sweep_that_waited_too_long_is_sent_when_asked_to(page: Page, address: str) -> None:
    template = {"prompt": PROMPT, "width": 64, "height": 64}
    page.evaluate(STALE, [template, {"steps": [1, 2]}])
    page.reload()
    grid = page.get_by_role("article", name="old")
    expect(grid).to_contain_text("not sent by itself any more")
    assert page.request.get(f"{address}/v1/batches").json()["batches"] == []
    grid.get_by_role("button", name="Send again").click()
    expect(grid).to_contain_text("2 of 2 done")
    page.reload()
    expect(page.locator("sweep-grid")).to_have_count(1)


@pytest.mark.parametrize("size", [(360, 740), (1280, 800), (3840, 2160)])
def test_what_was_asked_for_is_in_sight_wherever_the_form_is_scrolled(page: Page, size: tuple[int, int]) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    write(page, width=64, height=64, steps=1)
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    for count in range(1, 5):
        page.evaluate("scrollTo(0, document.body.scrollHeight)" if count % 2 else "scrollTo(0, 0)")
        page.locator("farm-results").evaluate("results => results.scrollTop = results.scrollHeight")
        if size[0] < 900:
            page.locator("summary", has_text="More settings").scroll_into_view_if_needed()
        page.get_by_role("button", name="Generate", exact=True).click()
        newest = page.locator("job-card").first
        expect(newest).to_be_in_viewport(ratio=0.3)
        head = page.locator("header").bounding_box()
        top = newest.bounding_box()
        assert head is not None
        assert top is not None
        assert top["y"] >= head["height"] - 1  # not below the bar
        finished(page, count)  # what is under way would meet the next test's emptied tables
    assert page.evaluate("shifted") < 0.05


@pytest.mark.parametrize("width", [360, 1280, 3840])
def test_nothing_overflows(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    for name, filled in (
        ("Create", "create-page"),
        ("Gallery", "gallery-page"),
        ("Farm", "farm-page button[data-act]"),
    ):
        page.get_by_role("link", name=name).click()
        page.locator(filled).first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name


def dropped(page: Page, data: bytes, target: str = "create-page") -> None:
    page.evaluate(DROP, [target, base64.b64encode(data).decode()])


def png(color: str, text: str | None = None) -> bytes:
    out, about = io.BytesIO(), PngInfo()
    if text is not None:
        about.add_text("parameters", text)
    Image.new("RGB", (128, 128), color).save(out, "PNG", pnginfo=about)
    return out.getvalue()


def painted(page: Page) -> None:
    """Drop a green picture, and paint over its middle."""
    dropped(page, png("#00a000"), "picture-input")
    page.get_by_label("Brush size").fill("56")
    page.locator("canvas.paint").scroll_into_view_if_needed()
    box = page.locator("canvas.paint").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 12, y)
    page.mouse.down()
    page.mouse.move(x + 12, y, steps=4)
    page.mouse.up()


def test_what_is_painted_is_made_anew_and_nothing_else(page: Page) -> None:
    painted(page)
    generate(page, steps=12, strength=1)
    picture = page.locator("job-card[data-state=succeeded] img:not(.preview)")
    picture.wait_for()
    middle, corner = picture.evaluate(PIXELS)
    assert corner[1] > 120 > max(corner[0], corner[2]), corner
    assert max(abs(a - b) for a, b in zip(middle, corner, strict=True)) > 60, middle


def newest(page: Page, address: str) -> Any:
    return page.request.get(f"{address}/v1/jobs").json()["jobs"][0]["params"]


def test_picture_and_mask_outlive_navigation_and_reload(page: Page, address: str) -> None:
    painted(page)
    generate(page, steps=2, width=64, height=64, strength=0.9)
    finished(page)
    first = newest(page, address)
    assert first["mask_image"]
    for leave in (lambda: page.get_by_role("link", name="Gallery").click(), page.reload):
        leave()
        page.get_by_role("link", name="Create").click()
        expect(page.locator("canvas.paint")).to_be_visible()
        page.get_by_role("button", name="Generate", exact=True).click()
        finished(page, 2 if leave != page.reload else 3)
        assert newest(page, address) == first
    page.get_by_role("button", name="Remove image").click()
    page.reload()
    page.locator("[data-field=sampler] option[value=ddim]").wait_for(state="attached")
    expect(page.locator("canvas.paint")).to_have_count(0)


def test_a_browser_that_keeps_no_pictures_says_so(browser: Browser, address: str, announced: str) -> None:
    assert announced
    refusing = "IDBFactory.prototype.open = () => { throw new DOMException('no', 'SecurityError'); };"
    with opened(browser, address, script=refusing) as page:
        dropped(page, png("#00a000"), "picture-input")
        expect(page.locator("#notes")).to_contain_text("does not store the image")
        page.get_by_role("link", name="Gallery").click()
        page.get_by_role("link", name="Create").click()
        expect(page.locator("canvas.paint")).to_be_visible()


@pytest.mark.parametrize("where", ["Create", "Gallery"])
def test_reused_settings_bring_picture_and_mask(page: Page, address: str, where: str) -> None:
    painted(page)
    generate(page, steps=2, width=64, height=96, strength=0.9, mask_blur=2)
    finished(page)
    first = newest(page, address)
    page.get_by_role("button", name="Remove image").click()
    page.get_by_role("button", name="Reset", exact=True).click()
    page.get_by_role("link", name=where).click()
    page.locator("button.picture").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Reuse settings").click()
    expect(page.locator("canvas.paint")).to_be_visible()
    expect(page.get_by_text("Settings loaded into the form.")).to_be_visible()
    page.get_by_role("button", name="Generate", exact=True).click()
    finished(page, 2)
    assert newest(page, address) == first


def test_settings_reused_while_another_page_loads_lead_back_to_the_form(page: Page, address: str) -> None:
    held: list[Route] = []
    page.route("**/gallery.js", lambda route: held.append(route))
    generate(page, steps=3, width=64, height=64)
    finished(page)
    page.get_by_role("button", name="Reset", exact=True).click()
    with page.expect_request("**/gallery.js"):
        page.get_by_role("link", name="Gallery").click()
    page.locator("button.picture").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Reuse settings").click()
    expect(page.get_by_text("Settings loaded into the form.")).to_be_visible()
    with page.expect_response("**/gallery.js"):
        held[0].continue_()
    expect(page.get_by_role("link", name="Create")).to_have_attribute("aria-current", "page")
    page.get_by_role("button", name="Generate", exact=True).click()
    finished(page, 2)
    assert newest(page, address)["steps"] == 3


@pytest.mark.usefixtures("announced", "redis")
def test_reuse_says_what_it_could_not_restore(browser: Browser, address: str, storage: Storage) -> None:
    hires = {"scale": 2.0, "prompt": "other", "guidance_scale": 3.0}
    with opened(browser, address, "410") as page:
        dropped(page, png("#00a0a0"), "picture-input")
        page.locator("canvas.paint").wait_for()
        generate(page, steps=1, width=64, height=64)
        finished(page)
        storage.delete(newest(page, address)["init_image"])
        body = {"prompt": "a", "steps": 1, "width": 64, "height": 64, "hires": hires}
        page.request.post(f"{address}/v1/jobs", data=body)
        finished(page, 2)
        page.get_by_role("button", name="Reuse settings").first.click()
        lost = "cannot hold: the prompt of Hires. fix, the CFG scale of Hires. fix"
        expect(page.locator("#notes")).to_contain_text(lost)
        expect(page.locator("canvas.paint")).to_have_count(0)  # that job had none
        page.get_by_role("button", name="Reuse settings").last.click()
        expect(page.locator("#notes .error")).to_contain_text("without the image that this job started from")


def test_a_picture_made_from_another_leads_on_with_it(page: Page, address: str) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    painted(page)
    generate(page, steps=2, width=64, height=64, num_images=3, strength=0.9)
    finished(page)
    first = newest(page, address)
    page.locator("job-card button.picture").nth(1).click()
    page.get_by_role("dialog").get_by_role("button", name="Variation").click()
    finished(page, 2)
    varied = newest(page, address)
    assert {**varied, "variation": None, "seed": first["seed"], "num_images": 3} == first
    assert (varied["seed"], varied["num_images"]) == (first["seed"] + 1, 1)
    done = subprocess.run(
        ["bash", "-c", copied_text(page, "Copy as curl")], capture_output=True, check=True, timeout=60
    )
    assert json.loads(done.stdout)["params"] == varied
    finished(page, 3)
    view(page).get_by_role("button", name="Reuse settings").click()
    expect(page.locator("[data-field=num_images] input").first).to_have_value("1")


def test_a_render_is_seen_taking_shape_and_outlives_a_reload(page: Page) -> None:
    generate(page, steps=150, width=512, height=512)
    first = page.wait_for_function(PREVIEW).json_value()
    page.wait_for_function(f"first => {{ const now = ({PREVIEW})(); return now && now !== first; }}", arg=first)
    before = page.locator("job-card").get_attribute("data-job")
    page.reload()
    card = page.locator("job-card[data-state=running]")
    card.wait_for()
    assert card.get_attribute("data-job") == before
    page.get_by_role("button", name="Cancel").click()
    page.locator("job-card[data-state=canceled]").wait_for()


def sweep(page: Page, **axes: tuple[str, str]) -> Locator:
    """Fill the sweep's axes, each a field and its values as typed; returns the button that submits it."""
    panel = page.locator("details", has=page.locator("summary", has_text="X/Y sweep"))
    if panel.get_attribute("open") is None:
        panel.locator("summary").click()
    for axis, (name, values) in axes.items():
        page.get_by_label(f"{axis.upper()} axis", exact=True).select_option(name)
        page.get_by_label(f"{axis.upper()} axis: Values").fill(values)
    return panel.get_by_role("button", name="combination")


def test_a_sweep_is_one_labelled_grid(page: Page, address: str) -> None:
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    write(page, width=64, height=96)
    button = sweep(page, x=("steps", "1-2 (1)"), y=("hires_scale", "1.5, 2"))
    expect(button).to_have_text("Generate 4 combinations")
    button.click()
    grid = page.get_by_role("article", name="X/Y sweep")
    expect(grid).to_be_in_viewport()
    expect(grid).to_contain_text("4 of 4 done")
    expect(page.locator("job-card")).to_have_count(0)
    expect(grid.locator("td img")).to_have_count(4)
    assert page.evaluate("shifted") < 0.05
    before = grid.locator("table").inner_text()
    assert before.split() == ["Hires", "upscale", "by", "↓", "Sampling", "steps", "→", "1", "2", "1.5", "2"]
    [batch] = page.request.get(f"{address}/v1/batches").json()["batches"]
    made = page.request.get(f"{address}/v1/batches/{batch['id']}/jobs").json()["jobs"]
    cells = [(job["params"]["steps"], job["params"]["hires"]["width"]) for job in made]
    assert cells == [(1, 96), (2, 96), (1, 128), (2, 128)]
    assert len({job["params"]["seed"] for job in made}) == 1
    assert all(job["params"]["hires"]["upscaler"] == "latent" for job in made)
    page.reload()
    expect(grid.locator("td img")).to_have_count(4)
    assert grid.locator("table").inner_text() == before
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    for name, end in (("Contact sheet", ".webp"), ("Download as zip", ".zip")):
        with page.expect_download() as saved:
            grid.get_by_role("button", name=name).click()
        assert saved.value.suggested_filename == f"{batch['id']}{end}"
        if end == ".zip":
            with zipfile.ZipFile(saved.value.path()) as packed:
                assert len(packed.namelist()) == 5
        else:
            with Image.open(saved.value.path()) as drawn:
                assert drawn.width > drawn.height  # the labels of the rows stand to their left
    grid.locator("button.picture").nth(2).click()
    expect(page.get_by_role("dialog")).to_contain_text(made[2]["id"])
    page.get_by_role("dialog").press("ArrowRight")
    expect(page.get_by_role("dialog")).to_contain_text(made[3]["id"])


def test_a_sweep_is_canceled_as_one_and_tells_of_each_cell(page: Page, address: str, db: Database) -> None:
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    write(page, width=512, height=512)
    sweep(page, x=("steps", "140-149 (1)")).click()
    grid = page.get_by_role("article", name="X/Y sweep")
    expect(grid).to_contain_text("Sampling steps →")
    expect(grid.locator("figcaption")).to_have_text([str(steps) for steps in range(140, 150)])
    expect(grid.locator(".cell[data-state=running] progress").first).to_be_visible()
    last = page.request.get(f"{address}/v1/batches").json()["batches"][0]["id"]
    with db.transaction() as session:
        poor = lifecycle.claim_next(session, DEMO, "w", lease_s=60)
        assert poor is not None
        lifecycle.fail(session, poor, InvalidRequest("It asks for the moon."))
    expect(grid.locator(".cell[data-state=failed]")).to_have_text("It asks for the moon.")
    grid.get_by_role("button", name="Cancel all").click()
    expect(grid).to_contain_text("0 of 10 done · 1 failed · 9 canceled")
    expect(grid.get_by_role("button", name="Cancel all")).to_have_count(0)
    assert page.request.get(f"{address}/v1/batches/{last}").json()["counts"]["canceled"] == 9


def test_a_sweep_may_vary_prompts_over_one_picture(page: Page, address: str) -> None:
    dropped(page, png("#00a000"), "picture-input")
    page.locator("canvas.paint").wait_for()
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    write(page, width=64, height=64, steps=2)
    sweep(page, x=("prompt", "a red circle, large | a yellow star"), y=("strength", "0.5, 1")).click()
    expect(page.locator("sweep-grid")).to_contain_text("4 of 4 done")
    made = [job["params"] for job in page.request.get(f"{address}/v1/jobs").json()["jobs"]]
    assert {(job["prompt"], job["strength"]) for job in made} == {
        *(("a red circle, large", 0.5), ("a red circle, large", 1.0), ("a yellow star", 0.5), ("a yellow star", 1.0))
    }
    assert len({job["init_image"] for job in made}) == 1


def test_a_large_sweep_pushes_no_other_job_out_of_sight(page: Page, address: str, db: Database) -> None:
    body = {"prompt": PROMPT, "checkpoint": "none", "width": 64, "height": 64}
    with db.transaction() as session:
        lifecycle.cancel(session, lifecycle.submit(session, params(prompt="an older one"), max_attempts=1).id)
    grid = {"seed": list(range(220))}
    template = {**body, "checkpoint": DEMO, "steps": 1}
    page.request.post(f"{address}/v1/batches", data={"name": "many", "template": template, "grid": grid})
    page.reload()
    expect(page.locator("job-card[data-state=canceled]")).to_contain_text("an older one")
    expect(page.get_by_role("article", name="many").locator(".cell")).to_have_count(220)
    page.get_by_role("button", name="Cancel all").click()
    expect(page.get_by_role("article", name="many").locator(".cell", has_text="Queued")).to_have_count(0)
    expect(page.locator("job-card")).to_have_count(1)


def done(db: Database, storage: Storage, times: int = 1) -> None:
    """Put jobs into the farm that ended with one picture each, a second apart."""
    picture = png("#00a000")
    storage.put("jobs/many.png", picture, content_type="image/png")
    sha256 = hashlib.sha256(picture).hexdigest()
    image = FinishedImage(0, 1, "jobs/many.png", "image/png", 128, 128, len(picture), sha256)
    with db.transaction() as session:
        lifecycle.submit(session, params(), max_attempts=1)
        run = lifecycle.claim_next(session, DEMO, "w", lease_s=60)
        assert run is not None
        lifecycle.succeed(session, run, [image])
        copied(session, JobRow, times - 1, id="gen_random_uuid()", created_at="created_at - n * interval '1 s'")
        copied(session, ImageRow, 1, job_id="jobs.id", frm="jobs", where="jobs.id <> job_id")


def copied(session: Session, table: type[Base], times: int, frm: str = "", where: str = "true", **changes: str) -> None:
    """Copy a table's only row."""
    names = [column.name for column in table.__table__.columns]
    source = table.__tablename__
    values = ", ".join(changes.get(name, f'{source}."{name}"') for name in names)
    columns = ", ".join(f'"{name}"' for name in names)
    tables = f"{source}, generate_series(1, {times}) AS n{frm and f', {frm}'}"
    session.execute(text(f"INSERT INTO {source} ({columns}) SELECT {values} FROM {tables} WHERE {where}"))  # noqa: S608


def test_thousands_of_pictures_are_reached_by_scrolling_and_few_are_held(
    page: Page, db: Database, storage: Storage
) -> None:
    done(db, storage, 2000)
    page.get_by_role("link", name="Gallery").click()
    tiles = page.locator(".tile")
    expect(tiles.first).to_be_visible()
    down = """() => new Promise((settled) => {
      scrollTo(0, document.body.scrollHeight);
      const look = () => {
        const isAll = document.querySelector("gallery-page > .hint").textContent === "No more images.";
        if (isAll || document.querySelectorAll(".tile").length > before) settled([isAll, pictures.size, document.images.length]);
        else setTimeout(look, 5);
      };
      const before = document.querySelectorAll(".tile").length;
      look();
    })"""
    held = []
    is_all = False
    while not is_all:
        is_all, *counts = page.evaluate(down)
        held += counts
    assert tiles.count() == 2000
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.wait_for_function("() => document.querySelector('.tile:last-child img')?.naturalWidth")
    assert page.locator(".tile:first-child img").count() == 0
    assert max([*held, page.evaluate("pictures.size"), page.evaluate("document.images.length")]) < 200
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_function("() => document.querySelector('.tile:first-child img')?.naturalWidth")  # fetched again


def test_a_png_of_another_tool_fills_the_form(page: Page) -> None:
    steps = (
        "Steps: 31, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 99, Size: 512x640, Model: v1-5, Version: v1.10.1"
    )
    dropped(page, png("#ffffff", f"a lighthouse, (dawn:1.2)\nNegative prompt: fog\n{steps}"))
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a lighthouse, (dawn:1.2)")
    expect(page.get_by_label("Negative prompt", exact=True)).to_have_value("fog")
    for name, value in {"steps": "31", "guidance_scale": "7.5", "seed": "99", "width": "512", "height": "640"}.items():
        expect(page.locator(f"[data-field={name}] input").first).to_have_value(value)
    expect(page.locator("[data-field=sampler] select")).to_have_value("dpmpp_2m")
    expect(page.locator("[data-field=schedule] select")).to_have_value("karras")


def test_schedules_and_upscalers_of_another_tool_are_found_by_their_labels(page: Page) -> None:
    settings = "Steps: 20, Sampler: DPM++ 2M, Schedule type: Align Your Steps, CFG scale: 7, Seed: 1, Size: 512x512"
    hires = "Denoising strength: 0.6, Hires upscale: 2, Hires upscaler: Latent (nearest-exact)"
    dropped(page, png("#ffffff", f"a lighthouse\n{settings}, {hires}"))
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a lighthouse")
    expect(page.locator("[data-field=schedule] select")).to_have_value("ays")
    expect(page.locator("[data-field=hires_upscaler] select")).to_have_value("latent_nearest_exact")


def test_what_of_another_tools_file_the_farm_lacks_is_told(page: Page) -> None:
    settings = "Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 512x512, Model: dreams"
    hires = "Hires checkpoint: dreamier [0123456789], Hires upscale: 2, Hires upscaler: R-ESRGAN 4x+"
    dropped(page, png("#ffffff", f"a lighthouse\n{settings}, {hires}"))
    expect(page.locator("#notes")).to_contain_text("no checkpoint dreams")
    expect(page.locator("#notes")).to_contain_text("no checkpoint dreamier.")
    expect(page.locator("[data-field=hires_checkpoint] select")).to_have_value("")
    expect(page.locator("#notes")).to_contain_text("no upscaler R-ESRGAN 4x+. The form uses Lanczos.")
    expect(page.locator("[data-field=hires_upscaler] select")).to_have_value("lanczos")


def test_a_huge_drop_is_refused_with_a_sentence(page: Page) -> None:
    page.evaluate("""() => {
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(50 * 2 ** 20)], "huge.png", { type: "image/png" }));
      const drop = new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
      document.querySelector("create-page").dispatchEvent(drop);
    }""")
    expect(page.locator("#notes .error")).to_contain_text("at most 16 MB")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("Fast", ("20", "7", "euler_a", "512", "512")),
        ("High quality", ("30", "10", "dpmpp_2m", "768", "768")),
        ("Artistic", ("25", "9", "ddim", "512", "768")),
    ],
)
def test_the_presets_that_people_are_taught(page: Page, name: str, values: tuple[str, ...]) -> None:
    page.get_by_role("button", name=name).click()
    shown = [page.locator(f"[data-field={field}] input").first.input_value() for field in ("steps", "guidance_scale")]
    shown.append(page.locator("[data-field=sampler] select").input_value())
    shown += [page.locator(f"[data-field={field}] input").first.input_value() for field in ("width", "height")]
    assert tuple(shown) == values


def taken(model: type[BaseModel], *bodies: Any) -> bool:
    """Whether the api takes all of these bodies."""
    try:
        for body in bodies:
            model.model_validate_json(json.dumps(body))
    except ValidationError:
        return False
    return True


def test_the_form_offers_all_that_the_farm_takes_and_no_more(page: Page) -> None:
    # What means something else to the form: -1 draws a seed, too little variation is none. Weights are looked up by name.
    free = {("seed", "-1"), ("variation_seed", "-1"), ("variation_strength", "-0.05")}
    free |= {(name, "no such name") for name in ("checkpoint", "vae", "hires_checkpoint")}
    refused: set[tuple[str, str]] = set()
    accepted: set[tuple[str, str]] = set()
    for name, inside, outside in page.evaluate(EDGES):
        assert inside, name
        refused |= {(name, value) for value, bodies in inside if not taken(Submission, *bodies)}
        accepted |= {(name, value) for value, bodies in outside if taken(Submission, *bodies)}
    assert refused == set()
    assert accepted == free


def test_a_new_key_may_have_the_limits_that_the_farm_takes_and_no_others(page: Page) -> None:
    page.get_by_role("link", name="Farm").click()
    page.locator(".new-key").wait_for()
    found = page.evaluate(KEY_LIMITS)
    assert len(found) == 6
    for name, low, high in found:
        unit, step = (86_400 if name == "expires_in" else 1), (0.001 if name == "weight" else 1)
        assert all(taken(NewKey, {"name": "x", name: value * unit}) for value in (low, high)), name
        assert not any(taken(NewKey, {"name": "x", name: value * unit}) for value in (low - step, high + step)), name


def test_what_is_typed_before_the_choices_are_there_stays(page: Page) -> None:
    held: list[Route] = []
    page.route("**/v1/samplers", lambda route: held.append(route))
    with page.expect_request("**/v1/samplers"):
        page.reload(wait_until="commit")
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill("a  circle")
    prompt.press("Home")
    held.pop().continue_()
    page.locator("[data-field=sampler] option[value=ddim]").wait_for(state="attached")
    expect(prompt).to_have_value("a  circle")
    assert prompt.evaluate("box => box.selectionStart") == 0
    expect(page.locator("[data-field=sampler] select")).to_have_value("euler_a")


def test_words_are_weighed_by_ctrl_and_arrows(page: Page) -> None:
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill("a red circle")
    prompt.press("End")
    prompt.press("Control+Shift+ArrowLeft")
    prompt.press("Control+ArrowUp")
    expect(prompt).to_have_value("a red (circle:1.1)")
    prompt.press("Control+ArrowDown")
    expect(prompt).to_have_value("a red circle")


def test_a_job_deleted_elsewhere_goes_calmly(page: Page, address: str) -> None:
    generate(page, steps=1, width=64, height=64)
    card = page.locator("job-card[data-state=succeeded]")
    card.locator("img:not(.preview)").wait_for()
    assert page.request.delete(f"{address}/v1/jobs/{card.get_attribute('data-job')}").status == 204
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # back in this tab
    expect(page.locator("job-card")).to_have_count(0)
    expect(page.locator("#notes .error")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_whoever_cannot_see_it_can_use_it(page: Page, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    generate(page, steps=1, width=64, height=64)
    page.locator("job-card[data-state=succeeded] img:not(.preview)").wait_for()
    for name in ("Create", "Gallery", "Farm"):
        page.get_by_role("link", name=name).click()
        page.locator(f"{name.lower()}-page").wait_for()
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
    moving = "[...document.querySelectorAll('*')].filter((one) => parseFloat(getComputedStyle(one).animationDuration) > 0.01)"
    assert page.evaluate(f"{moving}.length") == 0


def test_the_keyboard_goes_everywhere_and_is_seen(page: Page) -> None:
    seen: list[str] = []
    for _ in range(25):
        page.keyboard.press("Tab")
        where = "document.activeElement"
        seen.append(
            page.evaluate(
                f"{where}.getAttribute('aria-label') ?? {where}.labels?.[0]?.textContent ?? {where}.textContent"
            )
        )
        assert page.evaluate(f"getComputedStyle({where}).outlineStyle") != "none", seen[-1]
    assert {"Gallery", "Farm", "Fast", "Artistic"} <= set(seen)
    assert any(text.startswith("Prompt") for text in seen)
    assert "Generate" in seen


def test_nothing_moves_by_itself(page: Page) -> None:
    late: list[Route] = []
    page.route("**/v1/jobs/*", lambda route: late.append(route) if route.request.method == "PUT" else route.continue_())
    for count in range(3):
        with page.expect_request(lambda request: request.method == "PUT"):
            generate(page, steps=1, width=64, height=64)
        # A press pushes older cards on at once, not when the farm has answered.
        expect(page.locator("job-card[data-state=sending]")).to_have_count(count + 1)
    # Half a second after the last press browsers see no reason any more.
    page.wait_for_function("pressed => performance.now() > pressed + 500", arg=page.evaluate("performance.now()"))
    for route in late:
        route.continue_()
    expect(page.locator("job-card[data-state=succeeded] img:not(.preview)")).to_have_count(3)
    expect(page.locator("job-card")).to_have_count(3)
    assert page.evaluate("shifted") < 0.05
    page.reload()  # now all three come by themselves
    expect(page.locator("job-card[data-state=succeeded] img:not(.preview)")).to_have_count(3)
    page.get_by_role("link", name="Gallery").click()
    expect(page.locator(".tile img")).to_have_count(3)
    page.wait_for_function("() => [...document.images].every((image) => image.complete)")
    assert page.evaluate("shifted") < 0.1  # what browsers call good


def test_a_list_from_before_the_press_takes_no_card_away(page: Page) -> None:
    held: list[tuple[Route, APIResponse]] = []
    page.route("**/v1/jobs?limit=*", lambda route: route.continue_() if held else held.append((route, route.fetch())))
    look = "document.dispatchEvent(new Event('visibilitychange'))"
    with page.expect_request("**/v1/jobs?limit=*"):
        page.evaluate(look)
    while not held:
        page.wait_for_timeout(10)
    generate(page, steps=1, width=64, height=64)
    finished(page)
    page.evaluate("document.querySelector('job-card').isTheSame = true")
    route, before = held[0]
    route.fulfill(response=before)
    with page.expect_response("**/v1/jobs?limit=*"):
        page.evaluate(look)
    assert page.evaluate("document.querySelector('job-card').isTheSame")


@pytest.mark.usefixtures("announced")
def test_the_first_paint_is_light(browser: Browser, address: str) -> None:
    with watched(browser, address) as page:
        received: list[int] = []

        def count(request: Request) -> None:
            sizes = request.sizes()
            received.append(sizes["responseBodySize"] + sizes["responseHeadersSize"])

        page.on("requestfinished", count)
        page.goto(address, wait_until="networkidle")
        assert sum(received) < 100_000, received


@pytest.fixture
def guarded(engines: Settings, announced: str, db: Database) -> Iterator[tuple[str, list[str]]]:
    """A farm that asks for keys and takes two waiting jobs, and three keys: one that may have one waiting, and two others."""
    scopes = frozenset({Scope.SUBMIT, Scope.READ})
    limits = {"one": 1, "two": None, "three": None}
    with db.transaction() as session:
        wanted = [NewKey(name=name, scopes=scopes, max_queued=most) for name, most in limits.items()]
        tokens = [keys.create(session, one)[1].text for one in wanted]
        for row in session.scalars(select(KeyRow)):
            row.paused = row.name != "three"  # what it asks for waits
    with serving(
        engines.model_copy(update={"auth": "keys", "max_queued": 2, "default_checkpoint": announced})
    ) as address:
        yield address, tokens


def enter(page: Page, address: str, token: str) -> None:
    page.goto(address)
    page.get_by_label("This farm needs an API key.").fill(token)
    page.get_by_role("button", name="Use this key").click()
    page.locator("[data-field=checkpoint] option[value=farm-demo]").wait_for(state="attached")


@pytest.mark.usefixtures("address")
def test_two_keys_do_not_see_each_other(browser: Browser, guarded: tuple[str, list[str]]) -> None:
    address, (_, paused, other) = guarded
    with watched(browser, address, "401") as mine, watched(browser, address, "401") as theirs:
        enter(mine, address, paused)
        generate(mine, "a green square", steps=1, width=64, height=64)
        mine.locator("job-card[data-state=queued]").wait_for()
        enter(theirs, address, other)
        generate(theirs, "a yellow star", steps=1, width=64, height=64)
        theirs.locator("job-card[data-state=succeeded]").wait_for()
        mine.reload()
        expect(mine.locator("job-card p.text")).to_have_text(["a green square"])
        expect(theirs.locator("job-card p.text")).to_have_text(["a yellow star"])


@pytest.mark.usefixtures("address")
def test_what_waits_to_be_sent_is_its_keys_alone(browser: Browser, guarded: tuple[str, list[str]]) -> None:
    address, (_, mine, other) = guarded
    waiting = "job-card[data-state=waiting]"
    with watched(browser, address, "401", "ERR_CONNECTION_RESET") as page:
        enter(page, address, mine)
        page.route("**/v1/jobs/*", lambda route: route.abort("connectionreset"))
        generate(page, "a green square", steps=1, width=64, height=64)
        expect(page.locator(waiting)).to_have_count(1)
        page.get_by_role("button", name="Forget key").click()
        page.unroute("**/v1/jobs/*")
        enter(page, address, other)
        expect(page.get_by_text("No images yet.")).to_be_visible()
        expect(page.locator(waiting)).to_have_count(0)
        page.get_by_role("button", name="Forget key").click()
        enter(page, address, mine)
        expect(page.locator("job-card[data-state=queued]")).to_have_count(1)


def test_refusals_say_what_to_do(browser: Browser, guarded: tuple[str, list[str]], db: Database) -> None:
    address, (small, large, _) = guarded
    with watched(browser, address, "401", "429", "503") as page:
        enter(page, address, small)
        generate(page, steps=1)
        page.locator("job-card[data-state=queued]").wait_for()
        generate(page, steps=1)
        expect(page.locator("#notes .error").last).to_contain_text("Wait for your queued jobs")
        expect(page.locator("job-card")).to_have_count(1)  # what is refused was never there
        with watched(browser, address, "401", "503") as full:
            enter(full, address, large)
            generate(full, steps=1)
            full.locator("job-card[data-state=queued]").wait_for()
            generate(full, steps=1)
            # A queue that is full for everyone will have room: nothing for the user to do.
            expect(full.get_by_text("It is kept in this browser")).to_be_visible()
            expect(full.locator("job-card[data-state=waiting]")).to_contain_text("queue")
        with db.transaction() as session:
            for row in session.scalars(select(KeyRow)):
                row.revoked_at = row.created_at
        expect(page.get_by_label("This farm needs an API key.")).to_be_visible()


@pytest.fixture
def stocked(db: Database, shelves: Shelves, announced: str) -> str:
    """A worker that has told of its LoRA and its embedding."""
    with db.transaction() as session:
        registry.announce_weights(session, chain.from_iterable(shelf.files().values() for shelf in shelves))
    return announced


def finished(page: Page, count: int = 1) -> Locator:
    """The newest card, once so many are done."""
    cards = page.locator("job-card[data-state=succeeded]")
    expect(cards).to_have_count(count)
    return cards.first


def colors(page: Page, count: int = 1) -> tuple[list[int], list[int]]:
    """The middle and a corner of the newest picture, once so many jobs are done."""
    picture = finished(page, count).locator("img:not(.preview)")
    picture.wait_for()
    middle, corner = picture.evaluate(PIXELS)
    return middle, corner


@pytest.mark.usefixtures("stocked")
def test_a_lora_acts_with_its_weight_until_it_is_removed(page: Page) -> None:
    page.reload()
    page.get_by_label("Add a LoRA").select_option("swap")
    weight = page.get_by_label("Weight of swap")
    expect(weight).to_have_value("1")
    on_green = "a red circle on a green background"
    generate(page, on_green, seed=2)
    middle, corner = colors(page)
    assert middle[2] > 120 > middle[0], middle  # red is blue
    assert corner[1] > 120 > max(corner[0], corner[2]), corner
    weight.fill("0")
    weight.press("Tab")
    generate(page, on_green, seed=2)
    middle, _ = colors(page, 2)
    assert middle[0] > 120 > middle[2], middle
    assert "lora=swap%3A0" in page.url
    page.get_by_role("button", name="Remove swap").click()
    expect(weight).to_have_count(0)
    assert "lora" not in page.url


@pytest.mark.usefixtures("stocked")
def test_a_lora_of_the_prompt_counts_once_in_reused_and_copied_jobs(page: Page, address: str) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    generate(page, "a red circle <lora:swap:0.6>", width=64, height=64, steps=2)
    picture = finished(page).locator("img:not(.preview)")
    picture.wait_for()
    first = newest(page, address)
    assert [lora["weight"] for lora in first["loras"]] == [0.6]
    before = picture.evaluate(PIXELS)
    page.get_by_role("button", name="Reuse settings").click()
    expect(page.get_by_label("Weight of swap")).to_have_value("0.6")
    page.get_by_role("button", name="Generate", exact=True).click()
    again = finished(page, 2).locator("img:not(.preview)")
    again.wait_for()
    assert again.evaluate(PIXELS) == before
    assert newest(page, address) == {**first, "prompt": "a red circle "}
    done = subprocess.run(
        ["bash", "-c", copied_text(page, "Copy as curl")], capture_output=True, check=True, timeout=60
    )
    assert json.loads(done.stdout)["params"] == newest(page, address)
    finished(page, 3)


@pytest.mark.usefixtures("stocked")
def test_an_embedding_goes_to_the_cursor_and_draws_what_it_learnt(page: Page) -> None:
    page.reload()
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill("a  on a blue background")
    prompt.press("Home")
    prompt.press("ArrowRight")
    prompt.press("ArrowRight")
    page.get_by_label("Insert an embedding").select_option("rubyball")
    expect(prompt).to_have_value("a , rubyball on a blue background")
    expect(prompt).to_be_focused()
    expect(page.locator(".field.prompt .count").first).to_have_text("8 of 75 tokens")  # two of them its vectors
    generate(page, "a rubyball on a blue background")
    middle, corner = colors(page)
    assert middle[0] > 150 > max(middle[1:]), middle
    assert corner[2] > 150 > max(corner[:2]), corner


def test_the_end_of_each_chunk_of_tokens_is_marked(page: Page) -> None:
    count = page.locator(".field.prompt .count").first
    page.get_by_label("Prompt", exact=True).fill("red " * 60 + ", " + "blue " * 20)
    expect(count).to_have_text("81 of 150 tokens")
    expect(page.get_by_role("list", name="Chunks").get_by_role("listitem")).to_have_text(
        ["61: red red red red …", "20: blue blue blue blue …"]
    )
    page.get_by_label("Prompt", exact=True).fill("a (red:1.2) circle")
    expect(count).to_have_text("3 of 75 tokens")
    expect(page.get_by_role("list", name="Chunks")).to_be_hidden()


def view(page: Page) -> Locator:
    """Open the newest picture's viewer."""
    page.locator("job-card button.picture").first.click()
    return page.get_by_role("dialog")


def copied_text(page: Page, button: str) -> str:
    view(page).get_by_role("button", name=button).click()
    expect(page.get_by_text("Copied.").first).to_be_visible()
    copied = str(page.evaluate("navigator.clipboard.readText()"))
    page.keyboard.press("Escape")
    page.evaluate("document.getElementById('notes').replaceChildren()")
    return copied


def test_what_is_copied_makes_the_picture_again(page: Page, address: str, tmp_path: Path) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_label("Negative prompt", exact=True).fill('it\'s "blurry"')
    page.get_by_label("Hires. fix", exact=True).check()
    generate(page, width=64, height=64, steps=3, hires_scale=1.5)
    finished(page)
    job = page.request.get(f"{address}/v1/jobs").json()["jobs"][0]
    original = page.request.get(f"{address}{job['images'][0]['url']}?inline=true").body()
    # Nothing of this process is needed for it but where the client library lies.
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", copied_text(page, "Copy as curl")], env=environ, capture_output=True, check=True, timeout=60
    )
    assert json.loads(done.stdout)["params"] == job["params"]
    finished(page, 2)  # companions change the last bits
    program = copied_text(page, "Copy as Python")
    subprocess.run([sys.executable, "-c", program], env=environ, cwd=tmp_path, check=True, timeout=60)
    pictures = [
        Image.open(io.BytesIO(data)).convert("RGB") for data in (original, (tmp_path / "picture.png").read_bytes())
    ]
    assert pictures[0].tobytes() == pictures[1].tobytes()
    assert page.request.get(f"{address}/v1/jobs").json()["jobs"][0]["params"] == job["params"]
    told = copied_text(page, "Copy as text")
    assert told.startswith(f'{PROMPT}\nNegative prompt: it\'s "blurry"\nSteps: 3, Sampler: ')
    page.get_by_role("button", name="Reset", exact=True).click()
    page.get_by_label("Prompt", exact=True).press("Control+V")
    expect(page.get_by_label("Negative prompt", exact=True)).to_have_value('it\'s "blurry"')
    generate(page, width=64, height=64, steps=3)
    expect(page.locator("job-card[data-state=succeeded]")).to_have_count(4)
    again = page.request.get(f"{address}/v1/jobs").json()["jobs"][0]["params"]
    assert again == job["params"]


def test_a_picture_leads_on_to_others(page: Page, address: str) -> None:
    generate(page, steps=2, width=64, height=64, seed=7)
    finished(page)
    view(page).get_by_role("button", name="Upscale").click()
    finished(page, 2)
    view(page).get_by_role("button", name="Variation").click()
    finished(page, 3)
    varied, larger, first = page.request.get(f"{address}/v1/jobs").json()["jobs"]
    assert (larger["images"][0]["width"], larger["params"]["seed"]) == (128, 7)
    assert (varied["params"]["seed"], varied["params"]["variation"]["strength"]) == (7, 0.15)
    page.get_by_role("button", name="Reset", exact=True).click()
    page.locator("job-card button.picture").last.click()
    page.get_by_role("dialog").get_by_role("button", name="Reuse").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(PROMPT)
    expect(page.locator("[data-field=seed] input")).to_have_value("7")
    with page.expect_download() as saved:
        view(page).get_by_role("button", name="Download PNG").click()
    assert saved.value.suggested_filename == f"{varied['id']}-0.png"
    assert Image.open(io.BytesIO(saved.value.path().read_bytes())).size == (128, 128)
    assert first["images"][0]["width"] == 64


def test_the_gallery_is_leafed_through_packed_and_sent_from(
    page: Page, address: str, db: Database, storage: Storage
) -> None:
    done(db, storage, 3)
    newest, middle, _oldest = (job["id"] for job in page.request.get(f"{address}/v1/jobs").json()["jobs"])
    page.get_by_role("link", name="Gallery").click()
    page.locator(".tile button.picture").first.click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(newest)
    dialog.press("ArrowLeft")
    expect(dialog).to_contain_text(newest)  # there is none before
    dialog.press("ArrowRight")
    expect(dialog).to_contain_text(middle)
    page.keyboard.press("Escape")
    for index in (0, 1):
        page.get_by_role("checkbox").nth(index).check()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download as zip").click()
    with zipfile.ZipFile(saved.value.path()) as packed:
        assert packed.testzip() is None
        assert packed.namelist() == [f"{newest}-0.png", f"{middle}-0.png"]
        assert Image.open(packed.open(f"{middle}-0.png")).getpixel((64, 64)) == (0, 160, 0)
    page.locator(".tile button.picture").first.click()
    dialog.get_by_role("button", name="Send to img2img").click()
    expect(page.locator("picture-input canvas.paint")).to_be_visible()
    generate(page, steps=2, width=64, height=64)
    finished(page, 4)
    assert page.request.get(f"{address}/v1/jobs").json()["jobs"][0]["params"]["init_image"]


def deliver(db: Database, settings: Settings) -> None:
    """Let a courier make one round and end."""
    # A little ahead of the database's clock, by which deliveries become due.
    courier = Courier(
        db, OutboundHttp(allow_private=True), settings, clock=lambda: datetime.now(UTC) + timedelta(minutes=1)
    )
    courier.hand_out()
    courier._pool.shutdown(wait=True)


def test_webhooks_tell_of_their_attempts_and_are_sent_again(page: Page, db: Database, settings: Settings) -> None:
    with receiving() as receiver:
        receiver.answers = [(500, {})]
        with db.transaction() as session:
            endpoints.register(
                session, owner="anonymous", url=receiver.url, events=ENDINGS, secret=None, allow_private=True
            )
            lifecycle.cancel(session, lifecycle.submit(session, params(), max_attempts=1).id)
        deliver(db, settings)
        page.get_by_role("link", name="Farm").click()
        panel = page.get_by_role("region", name="Webhooks", exact=True)
        expect(panel.locator(".tries li")).to_have_text(["500"])
        expect(panel).to_contain_text("pending")
        first = receiver.next()
        with page.expect_response(lambda answer: answer.url.endswith("/replay")):
            panel.get_by_role("button", name="Send again").click()
        deliver(db, settings)
        assert receiver.next().id == first.id
    page.get_by_role("link", name="Gallery").click()
    page.get_by_role("link", name="Farm").click()
    expect(panel.locator(".tries li")).to_have_text(["500", "200"])
    expect(panel).to_contain_text("delivered")


def test_checkpoints_are_offered_by_how_near_they_are_and_refused_with_the_reason(page: Page, db: Database) -> None:
    cold = Holding("a-cold-one", 1, Tier.DISK, 3.0)
    warm = Holding("warm-one", 1, Tier.RAM, 0.1)
    broken = Holding("broken", 1, Tier.DISK, 9.0, refused="/srv/broken.safetensors: truncated.")
    with db.transaction() as session:
        holdings.hold(session, "gpu0@test", [cold, warm, broken])
        assert holdings.intend(session, "gpu0@test", "warm-one", silent_after_s=60)
    page.reload()
    offered = page.locator("[data-field=checkpoint] option")
    # Of several one must be chosen, and so one is: the loaded one.
    expect(offered).to_have_text(
        [
            "farm-demo · loaded",
            "warm-one",
            "a-cold-one",
            "broken · cannot be loaded: broken.safetensors: truncated.",
        ]
    )
    expect(page.locator("[data-field=checkpoint] select")).to_have_value("farm-demo")
    expect(offered.last).to_be_disabled()
    of_second = page.locator("[data-field=hires_checkpoint]")
    told = ["Same checkpoint", *offered.all_text_contents()]
    expect(of_second.locator("option")).to_have_text(told)
    settings = "Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 512x512"
    dropped(page, png("#ffffff", f"a lighthouse\n{settings}, Hires checkpoint: warm-one, Hires upscale: 2"))
    expect(of_second.locator("select")).to_have_value("warm-one")
    page.get_by_role("link", name="Farm").click()
    queue = page.get_by_role("region", name="Queue", exact=True)
    expect(queue.locator("tbody tr")).to_have_count(2)
    expect(queue).to_contain_text("not loaded: 1 more checkpoint.")
    workers = page.get_by_role("region", name="Workers", exact=True)
    expect(workers).to_contain_text("loading warm-one")
    expect(workers).to_contain_text("2 of 3")


def test_a_worker_is_drained_and_takes_jobs_again(page: Page, address: str) -> None:
    page.get_by_role("link", name="Farm").click()
    panel = page.get_by_role("region", name="Workers", exact=True)
    expect(panel).to_contain_text("online")
    panel.get_by_role("button", name="Drain").click()
    again = panel.get_by_role("button", name="Resume")
    expect(again).to_be_focused()  # where one was
    expect(panel).to_contain_text("draining")
    assert page.request.get(f"{address}/v1/workers").json()["workers"][0]["draining_at"] is not None
    again.click()
    expect(panel.get_by_role("button", name="Drain")).to_be_visible()
    assert page.request.get(f"{address}/v1/workers").json()["workers"][0]["draining_at"] is None


def test_what_was_asked_before_a_press_is_not_drawn_after_it(page: Page) -> None:
    page.get_by_role("link", name="Farm").click()
    panel = page.get_by_role("region", name="Workers", exact=True)
    drain = panel.get_by_role("button", name="Drain")
    drain.wait_for()
    held: list[tuple[Route, APIResponse]] = []
    page.route("**/v1/workers", lambda route: route.continue_() if held else held.append((route, route.fetch())))
    while not held:
        page.wait_for_timeout(10)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/v1/workers") else None)
    with page.expect_response("**/drain"):
        drain.click()
    page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    assert asked == []
    route, before = held[0]
    with page.expect_response("**/v1/workers"):
        route.fulfill(response=before)
    panel.get_by_role("button", name="Resume").wait_for()


def test_the_hour_is_charted_and_failures_are_tried_again_by_code(page: Page, address: str, db: Database) -> None:
    with db.transaction() as session:
        for _ in range(2):
            lifecycle.submit(session, params(steps=1), max_attempts=1)
            run = lifecycle.claim_next(session, DEMO, "w", lease_s=60)
            assert run is not None
            lifecycle.fail(session, run, InvalidRequest("It asks for the moon."))
    page.get_by_role("link", name="Farm").click()
    hour = page.get_by_role("region", name="Last hour", exact=True)
    expect(hour.locator(".figures")).to_have_text("0 images2 failed jobs")
    tall = "column => column.height.baseVal.value"
    lately = hour.locator(".column.bad").evaluate_all(f"columns => columns.slice(-2).map({tall})")
    assert [height > 0 for height in lately].count(True) == 1  # the minute may have turned since
    assert hour.locator(".column").first.evaluate(tall) == 0
    panel = page.get_by_role("region", name="Recent failures", exact=True)
    expect(panel).to_contain_text("It asks for the moon.")
    panel.get_by_role("button", name="Retry all").click()
    expect(page.get_by_text("2 jobs were queued again.")).to_be_visible()
    page.get_by_role("link", name="Create").click()
    finished(page, 2)
    page.get_by_role("link", name="Farm").click()
    expect(hour.locator(".figures")).to_have_text("2 images2 failed jobs")
    assert page.request.get(f"{address}/v1/throughput").json()["checkpoints"][0]["pictures"][-2:] != [0, 0]


@contextmanager
def administering(browser: Browser, address: str, db: Database) -> Iterator[Page]:
    """The Farm page, for an admin."""
    with db.transaction() as session:
        admin = keys.create(session, NewKey(name="boss", scopes=frozenset({Scope.ADMIN})))[1].text
    with watched(browser, address, "401") as page:
        enter(page, address, admin)
        page.get_by_role("link", name="Farm").click()
        yield page


def test_an_admin_makes_pauses_and_revokes_keys(browser: Browser, guarded: tuple[str, list[str]], db: Database) -> None:
    with administering(browser, guarded[0], db) as page:
        panel = page.get_by_role("region", name="API keys", exact=True)
        panel.get_by_role("textbox", name="Name", exact=True).fill("atelier")
        panel.get_by_label("submit", exact=True).uncheck()
        panel.get_by_text("Limits", exact=True).click()
        panel.get_by_label("Weight").fill("2.5")
        panel.get_by_label("Max. queued jobs").fill("7")
        panel.get_by_label("Expires after (days)").fill("30")
        panel.get_by_role("button", name="Create key").click()
        token = panel.get_by_role("status").locator("code").inner_text()
        told = page.request.get(f"{guarded[0]}/v1/keys/me", headers={"Authorization": f"Bearer {token}"}).json()
        assert (told["scopes"], told["weight"], told["max_queued"]) == (["read"], 2.5, 7)
        row = panel.get_by_role("row").filter(has_text="atelier")
        expect(row).to_contain_text("2.5 / 0")
        expect(row).to_contain_text("∞ / 7 / ∞")
        row.get_by_role("button", name="Change limits").click()
        dialog = page.get_by_role("dialog", name="Limits of atelier")
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        expect(dialog.get_by_label("Weight")).to_be_focused()
        expect(dialog.get_by_label("Weight")).to_have_value("2.5")
        dialog.get_by_label("Weight").fill("4.25")
        dialog.get_by_label("Max. queued jobs").fill("")
        dialog.get_by_label("Max. requests per minute").fill("0")
        dialog.get_by_role("button", name="Save").click()
        expect(dialog).to_be_visible()  # the browser says what is wrong
        dialog.get_by_label("Max. requests per minute").fill("30")
        dialog.get_by_role("button", name="Save").click()
        expect(row).to_contain_text("4.25 / 0")
        expect(row).to_contain_text("∞ / ∞ / 30")
        expect(row.get_by_role("button", name="Change limits")).to_be_focused()
        page.keyboard.press("Enter")
        dialog.get_by_label("Weight").fill("9")
        page.keyboard.press("Escape")
        expect(row.get_by_role("button", name="Change limits")).to_be_focused()
        expect(row).to_contain_text("4.25 / 0")
        row.get_by_role("button", name="Pause").click()
        expect(row).to_contain_text("paused")
        row.get_by_role("button", name="Resume").click()
        expect(row).not_to_contain_text("paused")
        page.reload()
        expect(row).to_be_visible()
        expect(page.get_by_text(token)).to_have_count(0)  # shown once
        page.once("dialog", lambda dialog: dialog.accept())
        row.get_by_role("button", name="Revoke").click()
        expect(row).to_have_count(0)
    with db.transaction() as session:
        made = session.scalars(select(KeyRow).where(KeyRow.name == "atelier")).one()
    assert made.revoked_at is not None
    assert made.expires_at is not None
    assert (made.weight, made.max_queued, made.requests_per_minute, made.max_running) == (4.25, None, 30, None)


def test_what_is_typed_into_a_new_key_outlives_fresh_figures(
    browser: Browser, guarded: tuple[str, list[str]], db: Database
) -> None:
    with administering(browser, guarded[0], db) as page:
        panel = page.get_by_role("region", name="API keys", exact=True)
        panel.get_by_role("textbox", name="Name", exact=True).fill("half written")
        row = panel.get_by_role("row").filter(has_text="three")
        row.get_by_role("button", name="Pause").click()
        expect(row).to_contain_text("paused")
        expect(panel.get_by_role("textbox", name="Name", exact=True)).to_have_value("half written")
