"""A setting is read where it acts: "How to add" in ARCHITECTURE.md.

That it is documented, with its default, `tests/unit/repository/test_settings.py` checks.
"""

import re
from collections.abc import Iterable, Iterator

from shared.settings import Settings
from tests.support.parts import ROOT

SOURCES = [path for package in ("api", "worker", "shared", "deploy") for path in (ROOT / package).rglob("*.py")]


def test_every_setting_is_read() -> None:
    for name in unread(Settings.model_fields, (path.read_text() for path in SOURCES if path.stem != "settings")):
        raise AssertionError(f"nothing reads settings.{name}: hand it on where it acts")


def test_a_setting_that_nothing_reads_is_noticed() -> None:
    sources = [
        "make(settings.width)",
        "self._settings.depth",
        "open(desk.settings.height)",
        "other.colour  # settings.colour",
    ]
    assert list(unread(["width", "depth", "height", "colour"], sources)) == ["colour"]


def unread(names: Iterable[str], sources: Iterable[str]) -> Iterator[str]:
    """Yield the settings that no source takes from something called settings."""
    code = (re.sub(r"#.*", "", source) for source in sources)
    read = {name for source in code for name in re.findall(r"settings\.(\w+)", source)}
    yield from (name for name in names if name not in read)
