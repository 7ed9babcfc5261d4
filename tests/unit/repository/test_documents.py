"""The pages for readers: links lead somewhere, no page is unlisted, and commands, settings and parameters are real ones."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import typer

from api.admission.submissions import Submission
from api.cli.app import app
from shared.settings import Settings
from tests.support.parts import ROOT

BUILT = {"build", "dist"}
FOLDERS = [path for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "." and path.name not in BUILT]
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in folder.rglob("*.md"))])
FOR_USERS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
# Variables of the command line, which has no settings of its own.
OF_THE_CLIENT = {"FARM_URL", "FARM_API_KEY"}


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / unquote(path)).resolve() if path else page
        assert file.is_relative_to(ROOT), target
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def test_links_and_anchors_are_found() -> None:
    # The checks above say nothing about a page in which they find none.
    assert "docs/jobs.md" in links(ROOT / "README.md")
    assert "api-keys-and-limits" in anchors(ROOT / "docs/jobs.md")
    assert slug("What `a_b` *is*: not - yet?") == "what-a_b-is-not---yet"


@pytest.mark.parametrize("page", FOR_USERS[1:], ids=name)
def test_every_page_of_docs_is_listed_in_its_folder(page: Path) -> None:
    index = page.parent / "README.md"
    if page == index:
        index = page.parent.parent / "README.md"
    assert page in {(index.parent / target).resolve() for target in links(index)}


def test_every_parameter_of_a_job_is_on_the_page_about_jobs() -> None:
    section = (ROOT / "docs/jobs.md").read_text().split("## Parameters")[1].split("\n## ")[0]
    described = {
        word for row in re.findall(r"^\|([^|]*)\|", section, re.MULTILINE) for word in re.findall(r"`(\w+)`", row)
    }
    assert described == set(Submission.model_fields), "the table of parameters in docs/jobs.md"


@pytest.mark.parametrize("page", FOR_USERS, ids=name)
def test_the_commands_and_settings_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    printed = "\n".join([*FENCED.findall(text), *CODE.findall(text)])
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", printed)) <= targets
    commands = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert set(re.findall(r"(?:^|`|bin/)farm ([a-z]+)", printed, re.MULTILINE)) <= commands
    known = {f"FARM_{field.upper()}" for field in Settings.model_fields} | OF_THE_CLIENT
    assert set(re.findall(r"\bFARM_[A-Z0-9_]+", text)) <= known


def test_no_page_counts_the_tests() -> None:
    counted = re.compile(r"\b\d[\d,]* (?:unit |integration )?tests\b(?!/)")
    for file in (*PAGES, ROOT / "Makefile", ROOT / "pyproject.toml"):
        assert not counted.search(file.read_text()), file


def links(page: Path) -> list[str]:
    """Return the targets of a page's links within the repository."""
    prose = CODE.sub("", FENCED.sub("", page.read_text()))
    return [target for target in LINK.findall(prose) if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings as GitHub makes them."""
    return set(_anchors(page.read_text()))


def _anchors(text: str) -> Iterator[str]:
    seen: Counter[str] = Counter()
    for heading in HEADING.findall(FENCED.sub("", text)):
        anchor = slug(heading)
        yield anchor if not seen[anchor] else f"{anchor}-{seen[anchor]}"
        seen[anchor] += 1


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")


def test_the_readme_waits_for_what_the_farm_says() -> None:
    (line,) = re.findall(r"until it says `(.+?)`", (ROOT / "README.md").read_text())
    assert f'"{line}"' in (ROOT / "api/cli/up.py").read_text()
