"""Dashboards and alerts ask only for what the farm shows, and Prometheus' own tool, where it is installed, agrees with them."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.infra import metrics
from tests import packages
from tests.support import compose
from tests.support.compose import ROOT
from tests.support.metrics import METRICS
from tests.support.waiting import LIMIT_S

FOLDER = ROOT / "deploy/monitoring"
DASHBOARD = FOLDER / "grafana/dashboards/farm.json"
SECRETS = dict.fromkeys(
    (
        "FARM_DATABASE_PASSWORD",
        "FARM_REDIS_PASSWORD",
        "FARM_S3_ACCESS_KEY_ID",
        "FARM_S3_SECRET_ACCESS_KEY",
        "GRAFANA_PASSWORD",
    ),
    "filled-in",
)
# What Prometheus adds to every series by itself.
ADDED = {"instance", "job", "le"}

PROMTOOL = packages.program("promtool") or ""
needs_promtool = pytest.mark.skipif(not PROMTOOL, reason="promtool (Debian: prometheus) is not here")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in rules())
    yield from (target["expr"] for panel in panels() for target in panel["targets"])
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        yield variable["query"]["query"]


def metric(name: str) -> metrics.Metric:
    base = re.sub(r"_(bucket|count|sum)$", "", name)
    return METRICS[base] if base in METRICS and METRICS[base].kind == "histogram" else METRICS[name]


def test_every_metric_that_is_asked_for_exists() -> None:
    asked = {name for expression in expressions() for name in re.findall(r"\bfarm_\w+", expression)}
    assert len(asked) > 15
    for name in asked:
        assert metric(name), name


def test_every_label_that_is_asked_for_exists() -> None:
    for expression in expressions():
        known = {label for name in re.findall(r"\bfarm_\w+", expression) for label in metric(name).labels} | ADDED
        grouped = re.findall(r"(?:by|ignoring|on) ?\(([\w, ]+)\)", expression)
        chosen = re.findall(r"(\w+)=~?\"", expression)
        assert {label.strip() for group in grouped for label in group.split(",")} | set(chosen) <= known, expression


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    for rule in rules():
        assert set(rule["annotations"]) == {"summary", "action"}, rule["alert"]
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["for"]


def test_every_alert_is_seen_to_fire() -> None:
    tests = yaml.safe_load((FOLDER / "alerts.test.yml").read_text())["tests"]
    seen = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert seen == {rule["alert"] for rule in rules()}


def test_every_metric_is_watched() -> None:
    """What nobody looks at is no use: each is on the dashboard, in an alert, or named by the runbook on scaling."""
    asked = {name for expression in expressions() for name in re.findall(r"\bfarm_\w+", expression)}
    watched = {metric(name).name for name in asked}
    page = set(re.findall(r"`(farm_\w+)`", (ROOT / "deploy/runbooks/scale.md").read_text()))
    assert page <= set(METRICS)
    assert set(METRICS) == watched | page


def test_grafana_finds_its_source_and_its_dashboard() -> None:
    provisioning = FOLDER / "grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    asked = {target["datasource"]["uid"] for panel in panels() for target in panel["targets"]}
    assert asked == {source["uid"]}
    (provider,) = yaml.safe_load((provisioning / "dashboards/farm.yml").read_text())["providers"]
    mounted = compose.services(SECRETS)["grafana"]["volumes"]
    assert f"./deploy/monitoring/grafana/dashboards:{provider['options']['path']}:ro" in mounted
    assert source["url"].split("//")[1].split(":")[0] in compose.services(SECRETS)


def test_panels_have_their_own_places_and_numbers() -> None:
    numbers = [panel["id"] for panel in panels()]
    assert len(set(numbers)) == len(numbers)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels())
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert all(x < 24 for x, _ in cells)


@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "alerts.yml"),
        ("check", "config", "--syntax-only", "prometheus.yml"),
        ("test", "rules", "alerts.test.yml"),
    ],
    ids=" ".join,
)
def test_prometheus_agrees(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [PROMTOOL, *arguments], cwd=FOLDER, capture_output=True, text=True, check=False, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_reads_what_the_dashboard_asks(tmp_path: Path) -> None:
    """promtool knows no dashboards; each question is put to it as a rule."""
    asked = [target["expr"].replace("$checkpoint", ".*") for panel in panels() for target in panel["targets"]]
    asked_as_rules = [{"record": f"asked:{number}", "expr": expr} for number, expr in enumerate(asked)]
    (tmp_path / "asked.yml").write_text(yaml.safe_dump({"groups": [{"name": "asked", "rules": asked_as_rules}]}))
    done = subprocess.run(
        [PROMTOOL, "check", "rules", "asked.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(asked)} rules found" in done.stdout


@needs_promtool
def test_what_is_shown_is_as_prometheus_likes_it() -> None:
    board = metrics.Board()
    shown = [one for one in METRICS.values() if one.kind != "histogram"]
    board.read(lambda: [one.of([(["x"] * len(one.labels), 1.0)]) for one in shown])
    done = subprocess.run(
        [PROMTOOL, "check", "metrics"], input=board.text(), capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
