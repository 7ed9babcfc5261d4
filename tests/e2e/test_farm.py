"""The whole farm as its users see it: started once, driven over HTTP, its parts killed one by one."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest

from deploy.standalone.farm import EmbeddedFarm, UpOptions, engines_only
from tests.support.farm import ended, submit, until
from tests.support.waiting import LIMIT_S


def options(data_dir: Path) -> UpOptions:
    """A farm on free ports that notices a lost worker sooner than the default's 20 s, and that times no batches."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
    environ |= {"FARM_LEASE_SECONDS": "10", "FARM_HEARTBEAT_SECONDS": "1", "FARM_PROFILE_SECONDS": "0"}
    return UpOptions(port=0, data_dir=data_dir, device="cpu", environ=environ)


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedFarm]:
    with EmbeddedFarm(options(tmp_path_factory.mktemp("farm"))) as farm:
        yield farm


@pytest.fixture
def http(farm: EmbeddedFarm) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=farm.url, timeout=LIMIT_S) as client:
        yield client


def test_a_job_runs_and_its_picture_downloads(http: httpx.Client) -> None:
    job = ended(http, submit(http, num_images=2, seed=11))
    assert job["state"] == "succeeded", job
    assert [image["seed"] for image in job["images"]] == [11, 12]
    assert job["progress"]["steps_done"] == job["progress"]["steps_total"] == 16
    picture = http.get(job["images"][0]["url"], follow_redirects=True)
    assert picture.content.startswith(b"\x89PNG")


def test_many_jobs_share_the_worker(http: httpx.Client) -> None:
    jobs = [submit(http, seed=seed) for seed in range(10)]
    assert {ended(http, job)["state"] for job in jobs} == {"succeeded"}


def test_a_running_job_is_canceled(http: httpx.Client) -> None:
    job_id = submit(http, steps=150, width=512, height=512)
    until(lambda: http.get(f"/v1/jobs/{job_id}").json()["progress"]["steps_done"] >= 1)
    assert http.post(f"/v1/jobs/{job_id}/cancel").json()["state"] == "canceled"
    # The worker is free again: another job goes through.
    assert ended(http, submit(http))["state"] == "succeeded"
    assert http.get(f"/v1/jobs/{job_id}").json()["state"] == "canceled"


@pytest.mark.parametrize("part", ["postgres", "redis", "s3", "api", "courier", "gpu"])
def test_a_killed_part_comes_back_and_the_next_render_works(farm: EmbeddedFarm, http: httpx.Client, part: str) -> None:
    victims = {name: pid for name, pid in farm.pids().items() if name.startswith(part)}
    assert victims, farm.pids()
    for pid in victims.values():
        os.kill(pid, signal.SIGKILL)
    until(lambda: all(farm.pids().get(name) not in {None, pid} for name, pid in victims.items()))
    assert ended(http, submit(http))["state"] == "succeeded"


def test_a_job_survives_the_death_of_its_worker(farm: EmbeddedFarm, http: httpx.Client) -> None:
    # Surely not done when its worker dies, and made anew within the deadline.
    job_id = submit(http, steps=150, width=192, height=192, num_images=2)
    until(lambda: http.get(f"/v1/jobs/{job_id}").json()["progress"]["steps_done"] >= 1)
    (worker,) = (pid for name, pid in farm.pids().items() if name.startswith("gpu"))
    os.kill(worker, signal.SIGKILL)
    job = ended(http, job_id)
    assert (job["state"], job["attempt"]) == ("succeeded", 2)


def test_remote_parts_replace_the_embedded_ones(tmp_path: Path) -> None:
    with engines_only(tmp_path / "remote", environ={}) as addresses:
        asked = options(tmp_path / "farm")
        with EmbeddedFarm(replace(asked, environ={**asked.environ, **addresses})) as farm:
            assert {name.split(".")[0] for name in farm.pids()} == {"api", "courier", "gpu0"}
            with httpx.Client(base_url=farm.url, timeout=LIMIT_S) as http:
                assert ended(http, submit(http))["state"] == "succeeded"


def test_a_restart_keeps_jobs_and_images_and_leaves_no_process(tmp_path: Path) -> None:
    with EmbeddedFarm(options(tmp_path)) as first, httpx.Client(base_url=first.url, timeout=LIMIT_S) as http:
        job_id = submit(http)
        job = ended(http, job_id)
        assert job["state"] == "succeeded"
        family = psutil.Process().children(recursive=True)
        mine = [one for one in family if one.pid in first.pids().values()]
        assert mine
        (worker,) = http.get("/v1/workers").json()["workers"]
        assert http.post(f"/v1/workers/{worker['id']}/drain").is_success  # stays idle, and is no reason not to start
    assert not [one for one in mine if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    with EmbeddedFarm(options(tmp_path)) as second, httpx.Client(base_url=second.url, timeout=LIMIT_S) as http:
        assert http.get(f"/v1/jobs/{job_id}").json()["images"] == job["images"]
        picture = http.get(job["images"][0]["url"], follow_redirects=True)
        assert picture.content.startswith(b"\x89PNG")
