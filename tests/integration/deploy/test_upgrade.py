"""The middle of a rolling upgrade: processes of an earlier code, of today's and of a later one, side by side on today's schema.

Until there is a release the earlier code is a commit of this repository's history, one migration behind. At each release, and
whenever a migration makes the two equal, EARLIER moves on.
"""

import inspect
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from api.a1111.requests import Txt2Img
from api.admission.submissions import HiresChoice, Submission
from api.admission.sweeps import BatchSubmission
from shared import migrations
from shared.settings import Settings
from tests.support import parts
from tests.support.factories import DEMO
from tests.support.site import BODY, Site, opened
from tests.support.waiting import LIMIT_S, until

EARLIER = "be8635428243091defb5b8deb2926c8d725e8963"
ITS_SCHEMA = "0016"
SOURCES = ("api", "deploy/standalone", "deploy/__init__.py", "shared", "tests", "worker")


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of the earlier code."""
    folder = tmp_path_factory.mktemp("earlier")
    packed = subprocess.run(
        ["git", "-C", str(parts.ROOT), "archive", EARLIER, *SOURCES], capture_output=True, check=False, timeout=60
    )
    if packed.returncode:
        pytest.skip(f"no history with commit {EARLIER[:7]} here: {packed.stderr.decode().strip()}")
    subprocess.run(["tar", "-x", "-C", folder], input=packed.stdout, check=True, timeout=60)
    return folder


@pytest.fixture(scope="module")
def site(engines: Settings, earlier: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Today's api with an earlier courier."""
    with opened(engines, tmp_path_factory.mktemp("site"), courier=earlier) as site:
        yield site


def test_the_earlier_code_is_older_than_the_schema(earlier: Path) -> None:
    revisions = {file.name[:4] for file in (earlier / "shared/migrations/versions").glob("0*.py")}
    assert max(revisions) == ITS_SCHEMA
    head = migrations.head()
    assert head is not None
    assert head > ITS_SCHEMA


def engine(code: Path) -> list[bytes]:
    """All that decides what a step makes of latents."""
    sources = [file for part in ("diffusion", "engine") for file in sorted((code / "worker" / part).rglob("*.py"))]
    return [file.read_bytes() for file in sources]


def test_jobs_go_on_from_old_workers_to_new_ones_and_back(site: Site, earlier: Path) -> None:
    # Another engine would end with another picture: it renders from the first step, and loses no more than that.
    goes_on = engine(earlier) == engine(parts.ROOT)
    with site.start("old@here", code=earlier) as old, site.start("new@here") as new:
        site.ready(DEMO, 2)
        long = site.begun("old@here")
        site.drain("old@here")
        assert old.wait(LIMIT_S) == 0
        done = site.until(long, "succeeded")
        assert (done["worker"], done["attempt"]) == ("new@here", 2)
        assert bool(done["resumed_from_step"]) is goes_on

        # And back: the release is withdrawn.
        with site.start("back@here", code=earlier):
            site.ready(DEMO, 2)
            undone = site.begun("new@here")
            site.drain("new@here")
            assert new.wait(LIMIT_S) == 0
            done = site.until(undone, "succeeded")
            assert (done["worker"], done["attempt"]) == ("back@here", 2)
            assert bool(done["resumed_from_step"]) is goes_on


def test_a_batch_ends_once_whoever_renders_it(site: Site, earlier: Path) -> None:
    with site.start("older@here", code=earlier), site.start("newer@here"):
        site.ready(DEMO, 2)
        asked = site.http.post(
            "/v1/batches", json={"template": {**BODY, "steps": 20}, "grid": {"seed": list(range(12))}}
        )
        assert asked.status_code == 202, asked.text
        batch = asked.json()["id"]
        assert until(lambda: site.http.get(f"/v1/batches/{batch}").json()["state"] == "finished")
        jobs = site.http.get(f"/v1/batches/{batch}/jobs").json()["jobs"]
        assert {job["worker"] for job in jobs} == {"older@here", "newer@here"}

        def finished() -> list[dict[str, Any]]:
            told = site.http.get("/v1/events", params={"limit": 1000}).json()["events"]
            return [one for one in told if one["type"] == "batch.finished"]

        assert until(lambda: bool(finished()))  # the feed ends where a transaction is still open
        assert len(finished()) == 1


def keyed(api: httpx.Client, name: str, **changes: Any) -> httpx.Response:
    return api.post("/v1/jobs", json={**BODY, **changes}, headers={"Idempotency-Key": name})


def put(api: httpx.Client, name: str, **changes: Any) -> httpx.Response:
    return api.put(f"/v1/jobs/{name}", json={**BODY, **changes})


def batch(api: httpx.Client, name: str, **changes: Any) -> httpx.Response:
    body = {"jobs": [{**BODY, "hires": {"scale": 2.0}}, {**BODY, "loras": [], "hires": None, **changes}]}
    return api.post("/v1/batches", json=body, headers={"Idempotency-Key": name})


def sweep(api: httpx.Client, name: str, **changes: Any) -> httpx.Response:
    body = {"template": {**BODY, **changes}, "grid": {"seed": [1, 2]}}
    return api.post("/v1/batches", json=body, headers={"Idempotency-Key": name})


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of an api whose bodies may say something more."""
    folder = tmp_path_factory.mktemp("later")
    for package in ("api", "shared"):
        shutil.copytree(parts.ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for model in (Submission, HiresChoice, BatchSubmission, Txt2Img):
        source = folder / Path(inspect.getfile(model)).relative_to(parts.ROOT)
        head = rf'(class {model.__name__}\(.+\n    """.+"""\n)'
        changed, count = re.subn(head, r"\1\n    of_late: int | None = None\n", source.read_text())
        assert count == 1
        source.write_text(changed)
    return folder


@pytest.fixture(scope="module")
def apis(site: Site, earlier: Path, later: Path) -> Iterator[dict[str, httpx.Client]]:
    """Three apis on the same tables, and a worker."""
    with (
        site.api("earlier", code=earlier) as old,
        site.api("later", code=later) as new,
        site.start("any@here"),
    ):
        site.ready(DEMO, 1)
        known = new.get("/openapi.json").json()["components"]["schemas"]
        assert "of_late" in known["Submission"]["properties"]
        yield {"earlier": old, "today": site.http, "later": new}


ORDERS = list(permutations(("earlier", "today", "later"), 2))


@pytest.mark.parametrize("order", ORDERS, ids="-then-".join)
@pytest.mark.parametrize("submit", [keyed, put, batch, sweep], ids=lambda one: one.__name__)
def test_a_submission_that_is_repeated_at_the_other_api_is_one(
    apis: dict[str, httpx.Client], submit: Callable[..., httpx.Response], order: tuple[str, str]
) -> None:
    first, other = (apis[name] for name in order)
    name = str(uuid4())
    made, again, once_more = submit(first, name), submit(other, name), submit(first, name)
    assert [one.status_code for one in (made, again, once_more)] == [202] * 3, again.text
    assert len({one.json()["id"] for one in (made, again, once_more)}) == 1
    refused = submit(other, name, steps=5)
    assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_key_reused")


# Between the earlier api and the later one a call is rendered again: the dialect refuses nobody for it.
@pytest.mark.parametrize("order", [one for one in ORDERS if "today" in one], ids="-then-".join)
def test_a_call_that_is_repeated_at_the_other_api_is_one(apis: dict[str, httpx.Client], order: tuple[str, str]) -> None:
    first, other = (apis[name] for name in order)
    body = {"prompt": "a red circle", "width": 64, "height": 64, "steps": 4, "force_task_id": f"task({uuid4()})"}

    def job(api: httpx.Client, **changes: Any) -> str:
        answer = api.post("/sdapi/v1/txt2img", json={**body, **changes})
        assert answer.status_code == 200, answer.text
        return answer.headers["X-Farm-Job-Id"]

    made = job(first)
    assert job(other) == job(first) == made
    another = job(other, steps=5)  # the name is that of another request now
    assert job(first, steps=5) == another != made
    assert made != job(first) != another
