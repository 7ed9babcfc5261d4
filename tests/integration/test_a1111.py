"""The dialect of AUTOMATIC1111's API against a running farm on the demo checkpoint."""

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image
from redis import Redis

from shared.settings import Settings
from tests.workshop import serving, working

SMALL = {"prompt": "a red circle on a blue background", "steps": 2, "width": 64, "height": 64, "seed": 7}


@pytest.fixture(scope="module")
def address(engines: Settings) -> Iterator[str]:
    with working(engines), serving(engines) as address:
        yield address


@pytest.fixture
def farm(address: str, announced: str, redis: Redis) -> Iterator[httpx.Client]:
    assert announced
    assert redis.dbsize() == 0
    with httpx.Client(base_url=address, timeout=60) as client:
        yield client


def picture(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def rendered(farm: httpx.Client, path: str = "txt2img", **fields: Any) -> dict[str, Any]:
    answer = farm.post(f"/sdapi/v1/{path}", json={**SMALL, **fields})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_the_script_that_users_have_runs_unchanged(farm: httpx.Client) -> None:
    key = ("admin", "any-key")
    switched = farm.post("/sdapi/v1/options", json={"sd_model_checkpoint": "farm-demo.safetensors"}, auth=key)
    assert (switched.status_code, switched.content) == (200, b"null")
    body = {"prompt": "a red circle on a blue background", "steps": 2, "width": 64, "height": 64}
    answer = farm.post("/sdapi/v1/txt2img", json=body, auth=key)
    assert answer.status_code == 200, answer.text
    result = answer.json()
    assert set(result) == {"images", "parameters", "info"}
    shown = picture(result["images"][0])
    assert (shown.format, shown.size) == ("PNG", (64, 64))
    info = json.loads(result["info"])
    assert shown.info["parameters"] == info["infotexts"][0]
    assert info["infotexts"][0].endswith("Model: farm-demo, Version: v1.10.1")
    job = farm.get(f"/v1/jobs/{answer.headers['x-farm-job-id']}").json()
    assert (job["state"], job["seeds"]) == ("succeeded", info["all_seeds"])
