"""The console in a real browser, against a real api and a real engine on the demo checkpoint.

In every test: no error on the browser's console, and no request to another host.
"""

import base64
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright
from redis import Redis
from sqlalchemy import select

from api import keys
from api.keys import NewKey, Scope
from shared import jobs
from shared.db import Database, KeyRow
from shared.jobs import FinishedImage, Order
from shared.settings import Settings
from shared.storage import Storage
from tests.factories import DEMO, params
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
# The picture in the making, as text that tells one from another.
PREVIEW = """() => {
  const image = document.querySelector("img.preview");
  if (!image?.complete || !image.naturalWidth) return null;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  canvas.getContext("2d").drawImage(image, 0, 0);
  return canvas.toDataURL();
}"""
# How much has moved by itself so far, as browsers count it.
SHIFTS = """
window.shifted = 0;
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
    with watched(browser, address) as page:
        page.goto(address)
        expect(page.locator("[data-field=sampler] select")).to_have_value("euler_a")
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


def test_what_is_painted_is_made_anew_and_nothing_else(page: Page) -> None:
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
    generate(page, steps=12, strength=1)
    picture = page.locator("job-card[data-state=succeeded] img:not(.preview)")
    picture.wait_for()
    middle, corner = picture.evaluate(PIXELS)
    assert corner[1] > 120 > max(corner[0], corner[2]), corner
    assert max(abs(a - b) for a, b in zip(middle, corner, strict=True)) > 60, middle


def test_a_render_is_seen_taking_shape_and_outlives_a_reload(page: Page) -> None:
    generate(page, steps=150, width=256, height=256)
    first = page.wait_for_function(PREVIEW).json_value()
    page.wait_for_function(f"first => {{ const now = ({PREVIEW})(); return now && now !== first; }}", arg=first)
    before = page.locator("job-card").get_attribute("data-job")
    page.reload()
    card = page.locator("job-card[data-state=running]")
    card.wait_for()
    assert card.get_attribute("data-job") == before
    page.get_by_role("button", name="Cancel").click()
    page.locator("job-card[data-state=canceled]").wait_for()


def test_a_sweep_renders_every_combination_with_one_seed(page: Page, address: str) -> None:
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    write(page, width=64, height=64)
    page.locator("summary", has_text="Sweep").click()
    page.get_by_label("Across", exact=True).select_option("steps")
    page.get_by_label("Across: Values").fill("1-2 (1)")
    page.get_by_label("Down", exact=True).select_option("sampler")
    page.get_by_label("Down: Values").fill("euler, ddim")
    page.get_by_role("button", name="Generate 4 pictures").click()
    expect(page.locator("job-card[data-state=succeeded]")).to_have_count(4)
    made = [job["params"] for job in page.request.get(f"{address}/v1/jobs").json()["jobs"]]
    cells = {(job["steps"], job["sampler"]) for job in made}
    assert cells == {(1, "euler"), (2, "euler"), (1, "ddim"), (2, "ddim")}
    assert len({job["seed"] for job in made}) == 1


def test_a_sweep_may_vary_prompts_over_one_picture(page: Page, address: str) -> None:
    dropped(page, png("#00a000"), "picture-input")
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    write(page, width=64, height=64, steps=2)
    page.locator("summary", has_text="Sweep").click()
    page.get_by_label("Across", exact=True).select_option("prompt")
    page.get_by_label("Across: Values").fill("a red circle, large | a yellow star")
    page.get_by_label("Down", exact=True).select_option("strength")
    page.get_by_label("Down: Values").fill("0.5, 1")
    page.get_by_role("button", name="Generate 4 pictures").click()
    expect(page.locator("job-card[data-state=succeeded]")).to_have_count(4)
    made = [job["params"] for job in page.request.get(f"{address}/v1/jobs").json()["jobs"]]
    assert {(job["prompt"], job["strength"]) for job in made} == {
        *(("a red circle, large", 0.5), ("a red circle, large", 1.0), ("a yellow star", 0.5), ("a yellow star", 1.0))
    }
    assert len({job["init_image"] for job in made}) == 1


def test_the_gallery_goes_back_as_far_as_one_scrolls(page: Page, db: Database, storage: Storage) -> None:
    storage.put("jobs/many.png", png("#00a000"), content_type="image/png")
    image = FinishedImage(0, 1, "jobs/many.png", "image/png", 128, 128, 1, "0" * 64)
    with db.transaction() as session:
        rows = jobs.submit_all(session, [Order(params=params(), max_attempts=1)] * 200)
        for _ in rows:
            run = jobs.claim_next(session, DEMO, "w", lease_s=60)
            assert run is not None
            jobs.succeed(session, run, [image])
    page.get_by_role("link", name="Gallery").click()
    tiles = page.locator(".tile")
    expect(tiles.first).to_be_visible()
    grown = "before => document.querySelectorAll('.tile').length > before || document.body.innerText.includes('That is all.')"
    while page.get_by_text("That is all.").count() == 0:
        before = tiles.count()
        page.mouse.wheel(0, 20_000)
        page.wait_for_function(grown, arg=before)
    assert tiles.count() == 200


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
    card.wait_for()
    assert page.request.delete(f"{address}/v1/jobs/{card.get_attribute('data-job')}").status == 204
    expect(page.locator("job-card")).to_have_count(0)
    expect(page.locator("#notes .error")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_whoever_cannot_see_it_can_use_it(page: Page, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    generate(page, steps=1, width=64, height=64)
    page.locator("job-card[data-state=succeeded] img:not(.preview)").wait_for()
    for name in ("Create", "Gallery", "Farm"):
        page.get_by_role("link", name=name).click()
        page.locator("main > *").wait_for()
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
    for _ in range(3):
        generate(page, steps=1, width=64, height=64)
    expect(page.locator("job-card[data-state=succeeded] img:not(.preview)")).to_have_count(3)
    page.get_by_role("link", name="Gallery").click()
    expect(page.locator(".tile img")).to_have_count(3)
    page.wait_for_function("[...document.images].every((image) => image.complete)")
    assert page.evaluate("shifted") < 0.1  # what browsers call good


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


def test_refusals_say_what_to_do(browser: Browser, guarded: tuple[str, list[str]], db: Database) -> None:
    address, (small, large, _) = guarded
    with watched(browser, address, "401", "429", "503") as page:
        enter(page, address, small)
        generate(page, steps=1)
        page.locator("job-card[data-state=queued]").wait_for()
        generate(page, steps=1)
        expect(page.locator("#notes .error").last).to_contain_text("wait for some, or cancel some")
        with watched(browser, address, "401", "503") as full:
            enter(full, address, large)
            generate(full, steps=1)
            full.locator("job-card[data-state=queued]").wait_for()
            generate(full, steps=1)
            expect(full.locator("#notes .error").last).to_contain_text("try again in a minute")
        with db.transaction() as session:
            for row in session.scalars(select(KeyRow)):
                row.revoked_at = row.created_at
        expect(page.get_by_label("This farm needs an API key.")).to_be_visible()
