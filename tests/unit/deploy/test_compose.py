"""The compose file names the processes that deploy/README.md names, publishes only the api, and keeps what must be kept."""

import re
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from api import serve
from shared.settings import Settings
from tests.support import compose
from tests.support.compose import ROOT

OURS = ("migrate", "api", "courier", "gpu-worker", "cpu-worker")
MAY_BE_EMPTY = {"FARM_CHECKPOINT", "FARM_PRELOAD", "FARM_WEIGHTS_CACHE_BYTES"}
KNOWN = {f"FARM_{name.upper()}" for name in Settings.model_fields}


def asked() -> dict[str, str]:
    lines = (ROOT / "deploy/compose.env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@pytest.fixture
def services() -> Mapping[str, Any]:
    return compose.services(
        {name: value or ("" if name in MAY_BE_EMPTY else "filled-in") for name, value in asked().items()}
    )


def test_every_process_is_there(services: Mapping[str, Any]) -> None:
    assert set(services) == {*OURS, "postgres", "redis", "storage", "prometheus", "grafana"}


def test_without_its_secrets_nothing_starts() -> None:
    secrets = [name for name, value in asked().items() if not value and name not in MAY_BE_EMPTY]
    assert len(secrets) == 4
    for missing in secrets:
        env = {name: value or "filled-in" for name, value in asked().items() if name != missing}
        with pytest.raises(compose.Unset, match=missing):
            compose.services(env)


def test_only_the_api_is_published(services: Mapping[str, Any]) -> None:
    assert [name for name, service in services.items() if "ports" in service] == ["api"]
    beside = yaml.safe_load((ROOT / "deploy/compose.loopback.yml").read_text())["services"]
    assert all(port.startswith("127.0.0.1:") for service in beside.values() for port in service["ports"])


def test_every_service_comes_back_and_says_how_it_is(services: Mapping[str, Any]) -> None:
    for name, service in services.items():
        assert service["restart"] == ("on-failure:5" if name == "migrate" else "unless-stopped"), name
        assert name == "migrate" or service["healthcheck"]["test"], name


def test_state_lives_in_named_volumes(services: Mapping[str, Any]) -> None:
    named = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["volumes"]
    for name in ("postgres", "redis", "storage", "prometheus", "grafana"):
        assert any(volume.split(":")[0] in named for volume in services[name]["volumes"]), name


def test_what_is_mounted_from_the_repository_exists(services: Mapping[str, Any]) -> None:
    mounted = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ())]
    for path in (path for path in mounted if path.startswith("./deploy")):
        assert (ROOT / path).exists(), path


def test_redis_keeps_what_it_is_told(services: Mapping[str, Any]) -> None:
    command = services["redis"]["command"]
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command


def test_a_worker_has_time_to_drain(services: Mapping[str, Any]) -> None:
    for name in ("gpu-worker", "cpu-worker"):
        grace_s = int(services[name]["stop_grace_period"].removesuffix("s"))
        assert grace_s > Settings.model_fields["drain_seconds"].default + 10


def test_an_api_has_time_to_answer_what_it_began(services: Mapping[str, Any]) -> None:
    assert int(services["api"]["stop_grace_period"].removesuffix("s")) > serve.DRAIN_S + 5


def test_only_the_gpu_worker_asks_for_a_gpu_and_both_are_chosen_by_profile(services: Mapping[str, Any]) -> None:
    assert [name for name, service in services.items() if "deploy" in service] == ["gpu-worker"]
    assert {name: service["profiles"] for name, service in services.items() if "profiles" in service} == {
        "gpu-worker": ["gpu"],
        "cpu-worker": ["cpu"],
    }


def test_our_containers_may_do_little(services: Mapping[str, Any]) -> None:
    for name in OURS:
        service = services[name]
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_the_environment_is_made_of_settings(services: Mapping[str, Any]) -> None:
    for name in OURS:
        assert set(services[name]["environment"]) <= KNOWN
        Settings.model_validate({key.removeprefix("FARM_").lower(): value for key, value in _set(services[name])})


def test_the_page_on_deployment_names_the_same_commands(services: Mapping[str, Any]) -> None:
    page = (ROOT / "deploy/README.md").read_text()
    assert services["api"]["command"].split(" --host")[0] in page
    assert services["courier"]["command"].split(" --concurrency")[0] in page
    assert services["gpu-worker"]["command"] in page


def test_no_secret_has_a_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    for name in re.findall(r"\$\{(\w*(?:PASSWORD|SECRET|KEY_ID)\w*)(?!\w*:\?)", text):
        assert f"${{{name}:?" in text
        assert f"${{{name}}}" not in text
        assert f"${{{name}:-" not in text


def _set(service: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in service["environment"].items() if value != ""]
