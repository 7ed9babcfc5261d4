"""The Python client against a running farm: pictures brought and taken, many jobs at once, awaited and blocking alike."""

import asyncio
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from redis import Redis

from api.cli.app import main
from api.client import AsyncFarm, ClientError, Farm, Job, Preview, Steps
from shared.settings import Settings
from shared.vocabulary.states import JobState
from tests.support.factories import png
from tests.support.waiting import LIMIT_S
from tests.support.workshop import serving, working

SMALL: dict[str, Any] = {"prompt": "a red circle on a blue background", "width": 64, "height": 64, "steps": 1}
NOBODY = "6f1f0f5e-7f54-4a0b-9f0e-2f6d7c1f4b11"


@pytest.fixture(scope="module")
def address(engines: Settings) -> Iterator[str]:
    with working(engines), serving(engines) as address:
        yield address


@pytest.fixture
def farm(address: str, announced: str, redis: Redis) -> Iterator[Farm]:
    assert announced
    assert redis.ping()
    with Farm(address) as farm:
        yield farm


def test_a_job_and_its_picture(farm: Farm) -> None:
    job = farm.wait(farm.submit(**SMALL, seed=7).id, timeout_s=LIMIT_S)
    assert (job.state, job.seeds) == ("succeeded", [7])
    with Image.open(io.BytesIO(farm.image(job))) as picture:
        assert picture.size == (64, 64)


def test_a_wait_may_end_between_two_seconds(farm: Farm) -> None:
    job = farm.submit(**SMALL, wait_s=0.5)
    assert farm.wait(job.id, timeout_s=29.5).state == "succeeded"
    slow = farm.submit(**{**SMALL, "steps": 150, "width": 512, "height": 512})
    with pytest.raises(ClientError) as told:
        farm.wait(slow.id, timeout_s=0.3)
    assert told.value.code == "still_running"
    farm.cancel(slow.id)


def test_a_sweep_over_an_uploaded_picture(farm: Farm, address: str) -> None:
    template = {**SMALL, "init_image": farm.upload(png("#0000ff")), "steps": 4}
    batch = farm.submit_batch(name="strengths", template=template, grid={"seed": [1, 2], "strength": [0.25, 1.0]})
    done = farm.wait_batch(batch.id, timeout_s=LIMIT_S)
    assert (done.state, done.counts[JobState.SUCCEEDED], done.removed) == ("finished", 4, 0)
    jobs = farm.batch_jobs(batch.id)
    assert [(job.params.seed, job.params.strength) for job in jobs] == [(1, 0.25), (1, 1.0), (2, 0.25), (2, 1.0)]
    sheet = httpx.get(f"{address}/v1/batches/{batch.id}/sheet", timeout=LIMIT_S)
    with Image.open(io.BytesIO(sheet.content)) as picture:
        assert picture.format == "WEBP"
    archive = httpx.get(f"{address}/v1/batches/{batch.id}/images.zip", timeout=LIMIT_S)
    with zipfile.ZipFile(io.BytesIO(archive.content)) as images:
        assert [images.read(name) for name in images.namelist()[:-1]] == [farm.image(job) for job in jobs]


def test_a_batch_is_canceled_whole(farm: Farm) -> None:
    batch = farm.submit_batch(template={**SMALL, "steps": 150}, grid={"seed": [*range(20)]})
    with pytest.raises(ClientError, match="unfinished"):
        farm.wait_batch(batch.id, timeout_s=0)
    canceled = farm.cancel_batch(batch.id)
    assert (canceled.state, sum(canceled.counts.values())) == ("finished", 20)
    assert farm.batch(batch.id).counts == canceled.counts


def test_the_same_awaited(address: str, farm: Farm) -> None:
    async def talk() -> tuple[Any, Any]:
        async with AsyncFarm(address) as awaited:
            template = {**SMALL, "init_image": await awaited.upload(png("#00ff00"))}
            batch = await awaited.submit_batch(template=template, zip={"seed": [1, 2]})
            done = await awaited.wait_batch(batch.id, timeout_s=LIMIT_S)
            assert await awaited.cancel_batch(batch.id) == await awaited.batch(batch.id)
            return done, await awaited.batch_jobs(batch.id)

    done, jobs = asyncio.run(talk())
    assert (done.state, [job.id for job in jobs]) == ("finished", [job.id for job in farm.batch_jobs(done.id)])


def test_what_is_not_there_is_told_by_its_code(farm: Farm) -> None:
    for call in (lambda: farm.batch(NOBODY), lambda: farm.batch("nonsense"), lambda: farm.batch_jobs(NOBODY)):
        with pytest.raises(ClientError) as told:
            call()
        assert told.value.code == "batch_not_found"


def test_the_key_does_not_travel_to_the_storage(address: str, farm: Farm) -> None:
    """A presigned address with a key beside it is refused by S3 servers; and it is none of their business."""
    assert farm
    seen: list[httpx.Request] = []
    with Farm(address, api_key="farm_k_secret") as keyed:
        keyed._transport.http.event_hooks = {"request": [seen.append]}
        keyed.upload(png("#ffffff"))
    assert ["authorization" in request.headers for request in seen] == [True, False]


@pytest.mark.usefixtures("farm")
def test_farm_sweep_saves_the_images_and_a_sheet(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--vary", "steps=1,2", "--vary", 'sampler=["euler", "ddim"]', "--set", "width=64", "--set", "height=64"]
    assert main(["--url", address, "sweep", "a red circle", *asked, "-o", str(tmp_path)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split(" ", 2)[2] for line in out[:-1]] == [
        *("steps=1 sampler=euler", "steps=1 sampler=ddim", "steps=2 sampler=euler", "steps=2 sampler=ddim")
    ]
    with Image.open(tmp_path / "sheet.webp") as sheet:
        assert sheet.format == "WEBP"
    assert len(list(tmp_path.glob("*.png"))) == 4


@pytest.mark.parametrize(
    ("vary", "said"),
    [
        ("steps", "NAME=VALUE"),
        ("steps=", "NAME=VALUE"),
        ("steps=[1", "not a JSON list"),
        ("steps=0", "where steps is 0"),
        ("nonsense=1", "where nonsense is 1"),
    ],
)
def test_a_sweep_that_cannot_be_is_one_line(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], vary: str, said: str
) -> None:
    assert main(["--url", address, "sweep", "a", "--vary", vary, "-o", str(tmp_path)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_job_is_followed_to_its_end(farm: Farm) -> None:
    job = farm.submit(**{**SMALL, "steps": 12, "width": 128, "height": 128})
    news = list(farm.stream(job.id, previews=True))
    states = [heard.state for heard in news if isinstance(heard, Job)]
    assert states[-1] == "succeeded"
    assert all(not state.is_final for state in states[:-1])
    assert all(heard.steps_total == 12 for heard in news if isinstance(heard, Steps))
    assert all(heard.data.startswith(b"\xff\xd8") for heard in news if isinstance(heard, Preview))


def test_what_cannot_be_followed_is_said_at_once(farm: Farm) -> None:
    with pytest.raises(ClientError) as told:
        next(farm.stream(NOBODY))
    assert told.value.code == "job_not_found"


def test_a_job_is_followed_on_a_loop_too(address: str, farm: Farm) -> None:
    assert farm.checkpoints()

    async def followed() -> list[JobState]:
        async with AsyncFarm(address) as other:
            job = await other.submit(**SMALL)
            return [news.state async for news in other.stream(job.id) if isinstance(news, Job)]

    assert asyncio.run(followed())[-1] is JobState.SUCCEEDED
