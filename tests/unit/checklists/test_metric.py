"""A metric that is declared is measured: "How to add" in ARCHITECTURE.md.

That it is watched, `tests/unit/deploy/test_monitoring.py` checks.
"""

import re

import pytest

from shared.infra import metrics
from tests.support.parts import ROOT

SOURCES = "\n".join(path.read_text() for package in ("api", "worker") for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("name", [name for name, value in vars(metrics).items() if isinstance(value, metrics.Metric)])
def test_every_metric_is_measured(name: str) -> None:
    assert re.search(rf"\b{name}\b", SOURCES), f"neither api nor worker counts or reads {name}"
