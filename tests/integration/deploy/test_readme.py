"""The programs of README.md and docs, run as printed but for the farm's address: each leaves the pictures that it names."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image
from redis import Redis

from shared.settings import Settings
from tests.support import pages
from tests.support.parts import ROOT
from tests.support.workshop import serving, working

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
RUNNERS = {
    "sh": ("bash", "-euo", "pipefail", "-c"),
    "python": (sys.executable, "-c"),
    "js": ("node", "--input-type=module", "--eval"),
}
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```", re.MULTILINE | re.DOTALL)
# The pictures that each program leaves, and their sides in pixels. A picture.png shows a red circle on blue.
PICTURE = {"picture.png": (256, 256)}
LEFT: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "README.md curl": PICTURE,
    "README.md client": PICTURE,
    "README.md a1111": PICTURE,
    "README.md cli": PICTURE,
    "docs/a1111.md requests": PICTURE,
    "docs/a1111.md webuiapi": PICTURE,
    "docs/a1111.md agent-scheduler": PICTURE,
    "docs/jobs.md submit": PICTURE,
    "docs/jobs.md render": {"pictures/*.png": (256, 256)},
    "docs/jobs.md parameters": {**PICTURE, "square.png": (256, 256)},
    "docs/jobs.md batch": {"images.zip:*.png": (256, 256), "sheet.webp": (0, 0)},
    "docs/jobs.md sweep": {"sweep/*.png": (256, 256), "sweep/sheet.webp": (0, 0)},
    "docs/jobs.md upload": PICTURE,
    "docs/jobs.md webhook": {},
}
MANY = {"pictures/*.png": 2, "images.zip:*.png": 4, "sweep/*.png": 4}


@pytest.fixture(scope="module")
def address(engines: Settings) -> Iterator[str]:
    with working(engines), serving(engines) as address:
        yield address


@pytest.mark.parametrize("title", LEFT)
def test_each_program_leaves_its_pictures(
    title: str, address: str, announced: str, redis: Redis, tmp_path: Path
) -> None:
    assert announced
    assert redis.ping()
    language, program = programs()[title]
    runner = RUNNERS[language]
    if shutil.which(runner[0]) is None:
        pytest.skip(f"no {runner[0]} here")
    program = program.replace("localhost:8000", address.removeprefix("http://"))
    command = tmp_path / ".venv/bin"
    command.mkdir(parents=True)
    env = {**pages.shell(command, FARM_URL=address), "PYTHONPATH": str(ROOT), "NO_PROXY": "*", "no_proxy": "*"}
    done = subprocess.run([*runner, program], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    for files, side_px in LEFT[title].items():
        found = list(pictures(tmp_path, files))
        assert len(found) == MANY.get(files, 1), files
        assert {picture.size for picture in found} == {side_px} or side_px == (0, 0)
    if "picture.png" in LEFT[title]:
        shows_a_red_circle_on_blue(tmp_path / "picture.png")


def test_every_program_of_the_pages_is_run() -> None:
    assert programs().keys() == LEFT.keys()


def programs() -> Mapping[str, tuple[str, str]]:
    """Return language and text of every program that a page prints, by page and name."""
    return {
        f"{page.relative_to(ROOT)} {name}": (language, text)
        for page in PAGES
        for language, name, text in BLOCK.findall(page.read_text())
    }


def pictures(folder: Path, files: str) -> Iterator[Image.Image]:
    """Open the pictures of a folder, or with `ARCHIVE:PATTERN` of a zip in it."""
    archive, colon, pattern = files.rpartition(":")
    if colon:
        with ZipFile(folder / archive) as zipped:
            zipped.extractall(folder / "unpacked")
        folder = folder / "unpacked"
    for path in folder.glob(pattern):
        with Image.open(path) as picture:
            picture.load()
            yield picture


def shows_a_red_circle_on_blue(file: Path) -> None:
    with Image.open(file) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels[128, 128, 0] > 150 > pixels[128, 128, 2]
    assert pixels[6, 6, 2] > 150 > pixels[6, 6, 0]
