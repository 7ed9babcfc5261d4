"""Builds what a Dockerfile builds, in a clean environment without a container engine, and imports what its containers start.

`python -m tests.images api`; takes minutes and needs a package index, hence no part of the test run (`make images` runs it).
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.images.dockerfile import IMAGES, Image
from tests.support.compose import ROOT


def build(image: Image, folder: Path) -> Path:
    """Copy and install as the Dockerfile says; returns the environment's Python."""
    source = folder / "source"
    for path in image.copied:
        if (ROOT / path).is_dir():
            shutil.copytree(ROOT / path, source / path, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            source.mkdir(exist_ok=True)
            shutil.copy(ROOT / path, source / path)
    subprocess.run([sys.executable, "-m", "venv", folder / "farm"], check=True)
    for line in image.installs:
        subprocess.run(
            ["/bin/sh", "-euc", line],
            cwd=source,
            check=True,
            env={"PATH": f"{folder / 'farm/bin'}:/usr/bin:/bin", "HOME": "/root"},
        )
    return folder / "farm/bin/python"


def check(name: str) -> None:
    """Import every entry point away from the sources; the api's image must have no torch."""
    image = IMAGES[name]
    with tempfile.TemporaryDirectory() as folder:
        python = build(image, Path(folder))
        for entry in image.entries:
            script = f"import importlib.util; assert importlib.util.find_spec({entry!r}), {entry!r}"
            if not entry.endswith("__main__"):
                script = f"import {entry}"
            subprocess.run([python, "-c", script], cwd=folder, check=True)
        torch = subprocess.run([python, "-c", "import torch"], cwd=folder, check=False, capture_output=True)
        if name == "api" and torch.returncode == 0:
            raise SystemExit("the api's image has torch")
    sys.stdout.write(f"{name}: {', '.join(image.entries)} start from what {image.file.name} copies and installs\n")


for wanted in sys.argv[1:] or IMAGES:
    check(wanted)
