"""The compose file's own commands and environments, run on this machine without a container engine, render a picture.

What is left out: the images themselves, Postgres' entry point (the embedded server stands in), Grafana, and what only
the engine does (names, mounts, profiles, GPU reservation).
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
import yaml
from sqlalchemy.engine import make_url

from deploy.standalone import folder as folders
from deploy.standalone import ports, postgres
from deploy.standalone.serving import DEMO
from deploy.standalone.supervisor import Supervisor
from tests import packages
from tests.support import compose
from tests.support.compose import Machine
from tests.support.farm import ended, submit
from tests.support.waiting import until

ENV = {
    "FARM_REDIS_PASSWORD": "redis-password",
    "FARM_S3_ACCESS_KEY_ID": "compose-key",
    "FARM_S3_SECRET_ACCESS_KEY": "compose-secret",
    "GRAFANA_PASSWORD": "unused-here",
    "FARM_ADMIN_KEY": "a-key-of-the-operator-with-32-characters",
}
LISTENING = ("redis", "storage", "api", "api metrics", "courier", "cpu-worker", "prometheus")
ENV_OF_PYTHON = {name: value for name, value in os.environ.items() if not name.startswith(("FARM_", "RCLONE_"))}


@dataclass(frozen=True, slots=True)
class Composed:
    """The farm of the compose file; the ports on which its services listen here."""

    supervisor: Supervisor
    ports: dict[str, int]

    def url(self, service: str) -> str:
        return f"http://127.0.0.1:{self.ports[service]}"


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    with (
        folders.hold(tmp_path_factory.mktemp("compose")) as folder,
        Supervisor(folder.logs, folder.run_file) as supervisor,
    ):
        engine = postgres.engine(folder, ENV_OF_PYTHON, lambda _line: None)
        for program in engine.programs:
            supervisor.start(program)
        url = make_url(engine.env["FARM_DATABASE_URL"])
        env = {**ENV, "FARM_DATABASE_PASSWORD": str(url.password)}
        taken = dict(zip(LISTENING, _ports(len(LISTENING)), strict=True))
        _start(supervisor, env, taken, f"127.0.0.1:{url.port}", folder.path)
        yield Composed(supervisor, taken)


def _ports(count: int) -> set[int]:
    found: set[int] = set()
    while len(found) < count:
        found.add(ports.pick("127.0.0.1"))
    return found


def _start(supervisor: Supervisor, env: dict[str, str], taken: dict[str, int], database: str, data: Path) -> None:
    services = compose.services(env)
    bucket = data / "s3" / services["storage"]["volumes"][0].split(":/data/")[1]
    for folder in (bucket, data / "redis-data", data / "cache"):
        folder.mkdir(parents=True)
    machine = Machine(
        addresses={
            "postgres:5432": database,
            "redis:6379": f"127.0.0.1:{taken['redis']}",
            "storage:8333": f"127.0.0.1:{taken['storage']}",
        },
        folders={"/data": str(data / "s3"), "/checkpoints": str(DEMO.parent), "/var/cache/farm": str(data / "cache")},
    )
    own = {
        "redis": {},
        "storage": {":8333": f"127.0.0.1:{taken['storage']}"},
        "migrate": {},
        "api": {
            "8000": str(taken["api"]),
            "9464": str(taken["api metrics"]),
            "0.0.0.0": "127.0.0.1",  # noqa: S104 - taken away here
        },
        "courier": {"9464": str(taken["courier"])},
        "cpu-worker": {"9464": str(taken["cpu-worker"])},
    }
    programs = {
        name: machine.program(name, services[name], words, taken.get(name), environ=ENV_OF_PYTHON)
        for name, words in own.items()
    }
    # A container's Redis has the standard port and the folder that the image gives it.
    local = ("--port", str(taken["redis"]), "--bind", "127.0.0.1", "--dir", str(data / "redis-data"))
    redis = replace(programs["redis"], argv=(*programs["redis"].argv, *local))
    supervisor.start(redis, programs["storage"])
    supervisor.start(programs["migrate"])
    supervisor.start(programs["api"], programs["courier"], programs["cpu-worker"])


def test_the_commands_of_the_compose_file_render_a_picture(farm: Composed) -> None:
    key = {"Authorization": f"Bearer {ENV['FARM_ADMIN_KEY']}"}
    with httpx.Client(base_url=farm.url("api"), timeout=60, headers=key) as http:
        assert httpx.get(f"{farm.url('api')}/v1/jobs", timeout=60).status_code == httpx.codes.UNAUTHORIZED
        job_id = submit(http)
        assert ended(http, job_id)["state"] == "succeeded"
        # The storage is hidden: the api hands the picture on instead of redirecting.
        picture = http.get(f"/v1/jobs/{job_id}/images/0")
        assert picture.status_code == httpx.codes.OK
        assert picture.content.startswith(b"\x89PNG")
        # What is published has no metrics.
        assert http.get("/metrics").status_code == httpx.codes.NOT_FOUND
    assert "farm_database_up 1.0" in httpx.get(f"{farm.url('api metrics')}/metrics", timeout=60).text


@pytest.mark.skipif(not packages.program("prometheus"), reason="Prometheus (Debian: prometheus) is not here")
def test_prometheus_by_its_own_command_sees_every_process_and_keeps_its_rules(farm: Composed, tmp_path: Path) -> None:
    monitoring = _monitoring(farm, tmp_path)
    service = compose.services({**ENV, "FARM_DATABASE_PASSWORD": "unused-here"})["prometheus"]
    machine = Machine(addresses={}, folders={"/etc/prometheus": str(monitoring), "/prometheus": str(tmp_path / "data")})
    program = machine.program("prometheus", service, {}, farm.ports["prometheus"], environ=ENV_OF_PYTHON)
    # A container listens where it likes.
    listen = f"--web.listen-address=127.0.0.1:{farm.ports['prometheus']}"
    farm.supervisor.start(replace(program, argv=(*program.argv, listen)))
    with httpx.Client(base_url=farm.url("prometheus"), timeout=20) as http:
        ready = service["healthcheck"]["test"][-1].split(":9090")[1]
        assert until(lambda: http.get(ready).is_success)

        def value(query: str) -> float | None:
            found = http.get("/api/v1/query", params={"query": query}).json()["data"]["result"]
            return float(found[0]["value"][1]) if found else None

        for job in ("api", "courier", "workers"):
            assert until(lambda job=job: value(f'up{{job="{job}"}}') == 1), job  # type: ignore[misc]
        assert until(lambda: value("max(farm_workers)") == 1)
        assert until(lambda: value("max(farm_engine_ticks_total)") is not None)
        groups = http.get("/api/v1/rules").json()["data"]["groups"]
        known = yaml.safe_load((monitoring / "alerts.yml").read_text())["groups"]
        assert [rule["name"] for rule in groups[0]["rules"]] == [rule["alert"] for rule in known[0]["rules"]]


def _monitoring(farm: Composed, folder: Path) -> Path:
    """Copy what is mounted; names that the engine would resolve become addresses, and a look every second."""
    copied = folder / "monitoring"
    shutil.copytree(compose.ROOT / "deploy/monitoring", copied)
    config = yaml.safe_load((copied / "prometheus.yml").read_text().replace("/etc/prometheus", str(copied)))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    services = compose.services({**ENV, "FARM_DATABASE_PASSWORD": "unused-here"})
    for scrape in config["scrape_configs"]:
        (asked,) = scrape.pop("dns_sd_configs")
        names = [name for name in asked["names"] if name in farm.ports]
        assert names
        assert set(asked["names"]) <= set(services)
        for name in names:
            its = services[name]
            assert str(asked["port"]) in (*its["command"].split(), str(its["environment"].get("FARM_METRICS_PORT")))
        scrape["static_configs"] = [
            {"targets": [f"127.0.0.1:{farm.ports.get(f'{name} metrics', farm.ports[name])}" for name in names]}
        ]
    (copied / "prometheus.yml").write_text(yaml.safe_dump(config))
    return copied
