"""The README's programs, run as they stand there but for the farm's address: each draws the picture that it asks for."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from redis import Redis

from shared.settings import Settings
from tests.support.parts import ROOT
from tests.support.workshop import serving, working

RUNNERS = {
    "sh": ("bash", "-euo", "pipefail", "-c"),
    "python": (sys.executable, "-c"),
    "js": ("node", "--input-type=module", "--eval"),
}


@pytest.fixture(scope="module")
def address(engines: Settings) -> Iterator[str]:
    with working(engines), serving(engines) as address:
        yield address


@pytest.mark.parametrize("language", RUNNERS)
def test_each_language_gets_its_picture(
    language: str, address: str, announced: str, redis: Redis, tmp_path: Path
) -> None:
    assert announced
    assert redis.ping()
    runner = RUNNERS[language]
    if shutil.which(runner[0]) is None:
        pytest.skip(f"no {runner[0]} here")
    program = example(language).replace("localhost:8000", address.removeprefix("http://"))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NO_PROXY": "*", "no_proxy": "*"}
    done = subprocess.run([*runner, program], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "picture.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape == (256, 256, 3)
    assert pixels[128, 128, 0] > 150 > pixels[128, 128, 2]
    assert pixels[6, 6, 2] > 150 > pixels[6, 6, 0]


def example(language: str) -> str:
    """Return the first program of a language."""
    found = re.search(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]
