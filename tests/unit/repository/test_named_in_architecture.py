"""What ARCHITECTURE.md names is there: tests, files, functions, contracts."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.parts import ROOT

PAGE = (ROOT / "ARCHITECTURE.md").read_text()
CHECKLISTS = sorted((ROOT / "tests/unit/checklists").glob("test_*.py"))
FOLDERS = ("api", "worker", "shared", "deploy", "tests", "docs")


def test_every_name_leads_somewhere() -> None:
    for name in astray(PAGE):
        raise AssertionError(f"ARCHITECTURE.md names {name}, which is not there")
    assert len(list(named(PAGE))) > 60


def test_a_name_that_leads_nowhere_is_noticed() -> None:
    here = "`test_a_name_that_leads_nowhere_is_noticed` `shared/jobs/lifecycle.claim_next` `worker/slots/` `docs`"
    assert not list(
        astray(here + " `tests/unit/repository/test_modules.py::test_no_public_class_name_means_two_things`")
    )
    gone = ["test_that_nobody_wrote", "shared/jobs/gone", "shared/jobs/lifecycle.gone", "api/v1/jobs.py::gone"]
    assert list(astray(" ".join(f"`{name}`" for name in gone) + ' contract "no news"')) == [*gone, 'contract "no news"']


@pytest.mark.parametrize("test", CHECKLISTS, ids=lambda test: test.stem)
def test_the_places_that_a_checklist_names_are_there(test: Path) -> None:
    for place in re.findall(r"\b(?:api|worker|shared|deploy|docs|tests)/[\w/.-]+\.\w+", test.read_text()):
        assert (ROOT / place).exists(), f"{test.name} names {place}, which is not there"


def test_every_module_is_in_the_codemap() -> None:
    codemap = PAGE.partition("## Codemap")[2].partition("## Words")[0]
    for package in ("shared", "api", "worker", "deploy"):
        (table,) = re.findall(rf"^### {package}:.*?(?=^### )", codemap, re.M | re.S)
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.stem == "__init__" or {"migrations", "training"} & set(path.parts):
                continue
            assert re.search(rf"`(\w+/)?{path.stem}`", table), f"{path.relative_to(ROOT)} is not in the codemap"


def test_the_page_is_readable_at_120_columns() -> None:
    assert not [line for line in PAGE.splitlines() if len(line) > 120]


def astray(text: str) -> Iterator[str]:
    """Yield the names in a text that lead nowhere."""
    yield from (name for name in named(text) if not _is_there(name))
    contracts = (ROOT / "pyproject.toml").read_text()
    for name in re.findall(r'contract "([^"]+)"', text):
        if f'name = "{name}' not in contracts:
            yield f'contract "{name}"'


def named(text: str) -> Iterator[str]:
    """Yield the tests and paths that a text names as code."""
    for name in re.findall(r"`([^`\s]+)`", text):
        if re.fullmatch(r"test_\w+(\.py)?", name) or (name.split("/")[0] in FOLDERS and "/" in name):
            yield name


def _is_there(name: str) -> bool:
    if "/" not in name:
        return name.removesuffix(".py") in _tests()
    path, _, test = name.partition("::")
    if (ROOT / path).exists():
        return not test or f"def {test}(" in (ROOT / path).read_text()
    path, *inner = name.split(".")
    module = (ROOT / path).with_suffix(".py")
    return module.exists() and all(
        re.search(rf"\b(def|class) {one}\b|^{one}\b", module.read_text(), re.M) for one in inner
    )


@cache
def _tests() -> set[str]:
    """The names of all tests, and of the files they are in."""
    files = list((ROOT / "tests").rglob("test_*.py"))
    functions = (name for file in files for name in re.findall(r"def (test_\w+)\(", file.read_text()))
    return {*functions, *(file.stem for file in files)}
