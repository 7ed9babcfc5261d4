"""Every overlay renders, every object is as Kubernetes' schema wants it, and the farm's own rules hold in all of them."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from shared.infra import metrics
from shared.settings import Settings
from tests.support import compose
from tests.support.compose import ROOT
from tests.support.waiting import LIMIT_S

FOLDER = ROOT / "deploy/kubernetes"
OVERLAYS = ("base", "overlays/cpu", "overlays/production")
SCHEMA = "1.31"
KNOWN = {f"FARM_{name.upper()}" for name in Settings.model_fields}

Manifest = dict[str, Any]


@cache
def rendered(overlay: str) -> tuple[Manifest, ...]:
    tool = Path(sys.executable).parent / "kubectl"
    words = [str(tool), "kustomize", str(FOLDER / overlay)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def of(kind: str, overlay: str = "overlays/production") -> list[Manifest]:
    return [manifest for manifest in rendered(overlay) if manifest["kind"] == kind]


def pods(overlay: str) -> Iterator[tuple[str, Manifest]]:
    for manifest in rendered(overlay):
        if manifest["kind"] in {"Deployment", "Job"}:
            yield manifest["metadata"]["name"], manifest["spec"]["template"]


def containers(overlay: str) -> Iterator[tuple[str, Manifest]]:
    for name, pod in pods(overlay):
        yield from ((name, container) for container in pod["spec"]["containers"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_fits_the_schema(overlay: str) -> None:
    for manifest in rendered(overlay):
        if manifest["apiVersion"] != "keda.sh/v1alpha1":
            kubernetes_validate.validate(manifest, SCHEMA, strict=True)


def test_the_schema_is_one_that_finds_mistakes() -> None:
    (first, *_) = of("Deployment")
    wrong = json.loads(json.dumps(first))
    wrong["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, SCHEMA, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_may_more_than_it_needs(overlay: str) -> None:
    for name, pod in pods(overlay):
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["seccompProfile"]["type"] == "RuntimeDefault", name
    for name, container in containers(overlay):
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True, name
        assert security["allowPrivilegeEscalation"] is False, name
        assert security["capabilities"] == {"drop": ["ALL"]}, name
        assert "memory" in container["resources"]["limits"], name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_settings_are_settings_and_no_secret_is_among_them(overlay: str) -> None:
    (settings,) = of("ConfigMap", overlay)
    named = {entry["name"] for _, container in containers(overlay) for entry in container.get("env", ())}
    assert set(settings["data"]) | named <= KNOWN
    assert not [name for name in settings["data"] if re.search("KEY|SECRET|PASSWORD|_URL", name)]
    assert not of("Secret", overlay)


def test_long_running_pods_are_probed_and_budgeted() -> None:
    budgets = {json.dumps(budget["spec"]["selector"], sort_keys=True) for budget in of("PodDisruptionBudget")}
    for deployment in of("Deployment"):
        assert json.dumps(deployment["spec"]["selector"], sort_keys=True) in budgets, deployment["metadata"]["name"]
        for container in deployment["spec"]["template"]["spec"]["containers"]:
            assert {"startupProbe", "livenessProbe"} <= set(container)


def test_selectors_never_overlap() -> None:
    deployments = of("Deployment")
    for one in deployments:
        wanted = one["spec"]["selector"]["matchLabels"].items()
        matched = [
            other["metadata"]["name"]
            for other in deployments
            if wanted <= other["spec"]["template"]["metadata"]["labels"].items()
        ]
        assert matched == [one["metadata"]["name"]]


def test_a_worker_has_a_gpu_and_time_to_drain() -> None:
    (worker,) = [deployment for deployment in of("Deployment") if "worker" in deployment["metadata"]["name"]]
    spec = worker["spec"]["template"]["spec"]
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert Settings.model_fields["drain_seconds"].default + 10 < spec["terminationGracePeriodSeconds"] < 120


def test_a_worker_renders_every_checkpoint() -> None:
    (worker,) = [deployment for deployment in of("Deployment") if "worker" in deployment["metadata"]["name"]]
    named = {env["name"] for env in worker["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert not named & {"FARM_CHECKPOINT", "FARM_PRELOAD"}


def test_without_gpus_nothing_asks_for_one() -> None:
    assert "nvidia.com/gpu" not in json.dumps(rendered("overlays/cpu"))
    assert not of("ScaledObject", "overlays/cpu")


def test_keda_scales_the_workers_by_what_the_farm_wants() -> None:
    """KEDA's own schema is not at hand: this is its shape for a Prometheus trigger, by hand."""
    (scaler,) = of("ScaledObject")
    spec = scaler["spec"]
    assert spec["scaleTargetRef"]["name"] in {deployment["metadata"]["name"] for deployment in of("Deployment")}
    assert 0 <= spec["minReplicaCount"] < spec["maxReplicaCount"]
    (trigger,) = spec["triggers"]
    assert (trigger["type"], trigger["metricType"]) == ("prometheus", "AverageValue")
    asked = trigger["metadata"]
    assert all(isinstance(value, str) for value in asked.values())
    assert asked["threshold"] == "1"
    assert asked["query"] == f"max({metrics.DESIRED_WORKERS.name})"
    assert asked["serverAddress"].startswith("http://")


def test_the_network_is_closed_but_for_what_is_named() -> None:
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in of("NetworkPolicy")}
    assert policies["farm-nobody-calls"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    (_, outside) = policies["farm-calls-its-parts"]["egress"]
    assert outside["to"][0]["ipBlock"]["except"] == ["169.254.0.0/16"]


def test_the_commands_are_those_of_the_compose_file() -> None:
    asked = (ROOT / "deploy/compose.env.example").read_text().splitlines()
    env = {line.split("=")[0]: "x" for line in asked if line and not line.startswith("#")}
    services = compose.services(env)
    for manifest, service in (
        ("farm-api", "api"),
        ("farm-courier", "courier"),
        ("farm-worker", "gpu-worker"),
        ("farm-migrate", "migrate"),
    ):
        (container,) = [container for name, container in containers("base") if name == manifest]
        ours, theirs = container["command"], services[service]["command"].split()
        assert [word for word in ours if not word.isdigit()] == [
            word for word in theirs[: len(ours)] if not word.isdigit()
        ]
