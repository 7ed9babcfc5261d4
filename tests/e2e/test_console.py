"""The console in a real browser, against a real api and a real engine on the demo checkpoint.

In every test: no error on the browser's console, and no request to another host.
"""

import base64
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright
from redis import Redis

from shared.settings import Settings
from tests.workshop import serving, working

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install the system's package chromium")

expect.set_options(timeout=30_000)

PROMPT = "a red circle on a blue background"
# What the middle and a corner of the shown picture look like, as the browser draws it.
PIXELS = """image => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0);
  const at = (x, y) => [...pen.getImageData(x, y, 1, 1).data.slice(0, 3)];
  return [at(canvas.width / 2, canvas.height / 2), at(4, 4)];
}"""
DROP = """([target, text]) => {
  const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
  document.querySelector(target).dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
}"""


@pytest.fixture(scope="module")
def address(engines: Settings) -> Iterator[str]:
    with working(engines), serving(engines) as address:
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
    assert announced
    assert redis.dbsize() == 0
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(60_000)
    complaints: list[str] = []
    strangers: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        if message.type == "error" and "ERR_INTERNET_DISCONNECTED" not in message.text:
            complaints.append(message.text)

    page.on("console", hear)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: (
            strangers.append(request.url) if not request.url.startswith((address, "blob:", "data:")) else None
        ),
    )
    page.goto(address)
    expect(page.locator("[data-field=sampler] select")).to_have_value("euler_a")
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


def test_a_render_is_canceled(page: Page) -> None:
    generate(page, steps=150, width=512, height=512)
    page.locator("job-card[data-state=running]").wait_for()
    page.get_by_role("button", name="Cancel").click()
    card = page.locator("job-card[data-state=canceled]")
    card.wait_for()
    expect(card.locator("progress")).to_be_hidden()


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
    expect(page.locator("#notes .error")).to_contain_text("not a picture")


def test_the_gallery_shows_filters_and_deletes(page: Page) -> None:
    generate(page, steps=1, width=64, height=64)
    page.locator("job-card[data-state=succeeded]").wait_for()
    page.get_by_role("link", name="Gallery").click()
    page.locator(".tile button.picture").first.click()
    expect(page.locator("dialog dl")).to_contain_text("Seed")
    page.once("dialog", lambda dialog: dialog.accept())
    page.locator("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator(".tile")).to_have_count(0)
    page.get_by_label("Search prompts").fill("nothing like it")
    expect(page.locator("gallery-page")).to_contain_text("No pictures here yet.")


def test_the_farms_page_shows_queue_and_workers(page: Page) -> None:
    page.get_by_role("link", name="Farm").click()
    expect(page.get_by_role("region", name="Worker", exact=True)).to_contain_text("farm-demo")
    expect(page.locator(".panel")).to_have_count(6)


def test_losing_the_connection_is_told_and_healed(page: Page) -> None:
    page.context.set_offline(True)
    expect(page.locator("farm-connection")).to_contain_text("cannot be reached")
    page.context.set_offline(False)
    expect(page.locator("farm-connection")).not_to_contain_text("cannot be reached")


def test_on_a_narrow_screen_what_was_asked_for_is_in_view(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    generate(page, steps=1, width=64, height=64)
    expect(page.locator("job-card")).to_be_in_viewport()


@pytest.mark.parametrize("width", [360, 1280, 3840])
def test_nothing_overflows(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    for name in ("Create", "Gallery", "Farm"):
        page.get_by_role("link", name=name).click()
        page.locator("main > *").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
