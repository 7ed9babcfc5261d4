"""The compose file starts the processes that the README names, and publishes nothing but the api."""

from pathlib import Path
from typing import Any

import yaml

from shared.settings import Settings

ROOT = Path(__file__).parents[2]


def services() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    named: dict[str, Any] = content["services"]
    return named


def test_every_process_is_there() -> None:
    assert set(services()) == {"postgres", "redis", "storage", "migrate", "api", "courier", "gpu-worker"}


def test_only_the_api_is_published() -> None:
    assert [name for name, service in services().items() if "ports" in service] == ["api"]


def test_redis_keeps_what_it_is_told() -> None:
    command = services()["redis"]["command"]
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command


def test_a_worker_has_time_to_drain() -> None:
    grace_s = int(services()["gpu-worker"]["stop_grace_period"].removesuffix("s"))
    assert grace_s > Settings.model_fields["drain_seconds"].default


def test_the_environment_is_made_of_settings() -> None:
    known = {f"FARM_{name.upper()}" for name in Settings.model_fields}
    for name in ("migrate", "api", "courier", "gpu-worker"):
        assert set(services()[name]["environment"]) <= known


def test_the_readme_names_the_same_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert services()["api"]["command"].split(" --host")[0] in readme
    assert services()["courier"]["command"].split(" --concurrency")[0] in readme
    assert services()["gpu-worker"]["command"] in readme
