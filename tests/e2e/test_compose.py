"""The compose file's own commands and environments, run on this machine without a container engine, render a picture.

What is left out: the images themselves, Postgres' entry point (the embedded server stands in), Prometheus and
Grafana, and what only the engine does (mounts, profiles, GPU reservation).
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from sqlalchemy.engine import make_url

from deploy.standalone import folder as folders
from deploy.standalone import ports, postgres
from deploy.standalone.serving import DEMO
from deploy.standalone.supervisor import Supervisor
from tests import compose
from tests.compose import Machine
from tests.e2e.test_farm import ended

ENV = {
    "FARM_REDIS_PASSWORD": "redis-password",
    "FARM_S3_ACCESS_KEY_ID": "compose-key",
    "FARM_S3_SECRET_ACCESS_KEY": "compose-secret",
    "GRAFANA_PASSWORD": "unused-here",
    "FARM_ADMIN_KEY": "a-key-of-the-operator-with-32-characters",
}
ENV_OF_PYTHON = {name: value for name, value in os.environ.items() if not name.startswith(("FARM_", "RCLONE_"))}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The farm of the compose file; yields where its api answers."""
    with (
        folders.hold(tmp_path_factory.mktemp("compose")) as folder,
        Supervisor(folder.logs, folder.run_file) as supervisor,
    ):
        engine = postgres.engine(folder, ENV_OF_PYTHON, lambda _line: None)
        for program in engine.programs:
            supervisor.start(program)
        url = make_url(engine.env["FARM_DATABASE_URL"])
        env = {**ENV, "FARM_DATABASE_PASSWORD": str(url.password)}
        taken = {name: ports.pick("127.0.0.1") for name in ("redis", "storage", "api", "courier", "cpu-worker")}
        _start(supervisor, env, taken, f"127.0.0.1:{url.port}", folder.path)
        yield f"http://127.0.0.1:{taken['api']}"


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
        "api": {"8000": str(taken["api"]), "0.0.0.0": "127.0.0.1"},  # noqa: S104 - taken away here
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


def test_the_commands_of_the_compose_file_render_a_picture(api: str) -> None:
    key = {"Authorization": f"Bearer {ENV['FARM_ADMIN_KEY']}"}
    with httpx.Client(base_url=api, timeout=60, headers=key) as http:
        assert httpx.get(f"{api}/v1/jobs").status_code == httpx.codes.UNAUTHORIZED
        body = {"prompt": "a red circle on a blue background", "width": 128, "height": 128, "steps": 4}
        job_id = http.post("/v1/jobs", json=body).json()["id"]
        assert ended(http, job_id)["state"] == "succeeded"
        # The storage is hidden: the api hands the picture on instead of redirecting.
        picture = http.get(f"/v1/jobs/{job_id}/images/0")
        assert picture.status_code == httpx.codes.OK
        assert picture.content.startswith(b"\x89PNG")
        assert "farm_database_up 1.0" in http.get("/metrics").text
