"""`python -m tests.screenshots`: the console's pages as people see them, at three sizes, dark and light, in `.farm/screenshots`.

For looking at. A farm of its own renders what they show, with the demo checkpoint.
"""

import os
import shutil
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Literal
from urllib.parse import urlencode

import httpx
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from api.client import Farm as Client
from deploy.standalone.farm import EmbeddedFarm, UpOptions

FOLDER = Path(".farm/screenshots")
SIZES = {"phone": (360, 740), "desk": (1280, 800), "wall": (3840, 2160)}
SCHEMES: tuple[Literal["dark", "light"], ...] = ("dark", "light")
PROMPTS = (
    "a red circle on a blue background",
    "a yellow star on a purple background",
    "a green square on a white background",
    "a blue triangle on a yellow background",
)
# Nobody listens there.
HOOK = {"url": "http://127.0.0.1:9/hook"}
LONG = f"{PROMPTS[0]}, {', '.join(['finely drawn', 'bright colours', 'clear edges', 'flat light'] * 8)}"
FORM = urlencode({"prompt": LONG, "negative_prompt": "blurry, grey"})
# Addresses, what each is about, and what of it must be there; pictures come when they are about to be seen.
READY = {
    "create": (f"create?{FORM}", "job-card[data-state=succeeded]", "job-card[data-state=succeeded] img:not(.preview)"),
    "form": (f"create?{FORM}", "header", ".chunks li:has-text(':')"),
    "gallery": ("gallery", ".tile", ".tile img"),
    "farm": ("farm", ".panel", ".panel table tbody tr"),
}


def main() -> int:
    """Render, show and save; returns an exit code."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        print("No Chromium here: install the system's package chromium.")  # noqa: T201 - a command line tool
        return 1
    FOLDER.mkdir(parents=True, exist_ok=True)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
    environ["FARM_ALLOW_PRIVATE_URLS"] = "true"
    with tempfile.TemporaryDirectory() as data, sync_playwright() as playwright:
        options = UpOptions(port=0, data_dir=Path(data), device="cpu", environ=environ)
        with (
            EmbeddedFarm(options) as farm,
            playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"]) as browser,
        ):
            _render(farm.url)
            for path in _shots(browser, farm.url):
                print(path)  # noqa: T201
    return 0


def _render(url: str) -> None:
    """Give the pages something to show."""
    httpx.post(f"{url}/v1/keys", json={"name": "atelier", "weight": 2.5, "max_queued": 7}).raise_for_status()
    with Client(url) as client:
        # For a delivery that was tried and will be again.
        client.wait(client.submit(prompt=PROMPTS[3], width=256, height=256, steps=20, seed=3, webhook=HOOK).id)
        batch = client.submit_batch(
            template={"width": 256, "height": 256, "steps": 20, "seed": 7}, zip={"prompt": list(PROMPTS)}
        )
        client.wait_batch(batch.id, timeout_s=300)
        client.cancel(client.submit(prompt=PROMPTS[0], steps=150, width=512, height=512).id)


def _shots(browser: Browser, url: str) -> list[Path]:
    shots = []
    for (size, (width, height)), scheme in product(SIZES.items(), SCHEMES):
        viewport: ViewportSize = {"width": width, "height": height}
        page = browser.new_page(viewport=viewport, color_scheme=scheme, has_touch=size == "phone")
        for name, (address, about, whole) in READY.items():
            page.goto("about:blank")
            page.goto(f"{url}/#{address}")
            shots.append(_shot(page, about, whole, FOLDER / f"{name}-{size}-{scheme}.png"))
            if name == "gallery":
                page.locator(".tile button.picture").first.click()
                shots.append(_shot(page, "dialog", "dialog img", FOLDER / f"viewer-{size}-{scheme}.png"))
            if name == "farm":
                page.get_by_role("button", name="Change limits").click()
                shots.append(_shot(page, "dialog", "dialog form", FOLDER / f"limits-{size}-{scheme}.png"))
        page.close()
    return shots


def _shot(page: Page, about: str, whole: str, path: Path) -> Path:
    page.locator(about).first.scroll_into_view_if_needed()
    page.locator(whole).first.wait_for()
    page.wait_for_function("() => [...document.images].every((image) => image.complete)")
    page.screenshot(path=path)
    return path


if __name__ == "__main__":
    sys.exit(main())
