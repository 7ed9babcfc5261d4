"""The annex: costly work is done beside the api, by another process that comes back when it dies and ends with the api."""

import base64
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from api.annex import process
from api.annex.process import Annex
from shared.errors import BadPicture, InvalidRequest, ObjectMissing, TooBusy
from shared.infra.storage import Storage
from shared.settings import Settings
from tests.support.factories import png
from tests.support.waiting import until

PROMPTS: dict[str, Any] = {"prompt": "a red circle", "negative_prompt": "", "steps": 20, "embeddings": []}

OF_AN_API = """
from api.annex.process import Annex
from shared.infra.storage import Storage
from shared.settings import Settings

settings = Settings(s3_access_key_id="none", s3_secret_access_key="none")
annex = Annex(settings, Storage(settings), tries=1, read_s=1.0)
annex.do("count_tokens", prompt="", negative_prompt="", steps=1, embeddings=[])
print(annex.pid, flush=True)
input()
"""


@pytest.fixture(scope="module")
def annex() -> Iterator[Annex]:
    """One of no storage."""
    settings = Settings(s3_access_key_id="none", s3_secret_access_key=SecretStr("none"))
    made = Annex(settings, Storage(settings), tries=1, read_s=1.0)
    yield made
    child = running(made.pid)
    made.close()
    assert not child.is_running()


def counted(annex: Annex) -> int:
    return int(annex.do("count_tokens", **PROMPTS).about["prompt"]["tokens"])


def running(pid: int | None) -> psutil.Process:
    assert pid is not None
    return psutil.Process(pid)


def test_it_starts_when_needed_with_less_priority(annex: Annex) -> None:
    assert annex.do("count_tokens", here=True, **PROMPTS).about["prompt"]["tokens"] == 3
    assert annex.pid is None
    assert counted(annex) == 3
    assert running(annex.pid).nice() > psutil.Process().nice()


def test_what_its_acts_refuse_is_raised_as_itself(annex: Annex) -> None:
    with pytest.raises(InvalidRequest, match="chunks of tokens"):
        annex.do(
            "count_tokens", **{**PROMPTS, "prompt": "".join(f"[a{n}:b:{n % 150}] " for n in range(700)), "steps": 150}
        )
    how: dict[str, Any] = {"what": "init_image", "is_base64": True, "is_mask": False}
    with pytest.raises(BadPicture, match="init_image: not valid base64"):
        annex.do("normalise_picture", b"?", **how)
    made = annex.do("normalise_picture", base64.b64encode(png("red")), **how)
    assert made.about["size"] == [64, 64]
    assert made.data.startswith(b"\x89PNG")


def test_many_ask_at_once_and_each_has_its_own_answer(annex: Annex) -> None:
    prompts = ["red " * count for count in range(1, 40)]
    with ThreadPoolExecutor(8) as pool:
        asked = pool.map(lambda prompt: annex.do("count_tokens", **{**PROMPTS, "prompt": prompt}), prompts)
        assert [one.about["prompt"]["tokens"] for one in asked] == list(range(1, 40))


def test_it_is_started_again_after_its_death_and_nobody_notices(annex: Annex) -> None:
    assert counted(annex) == 3
    child = running(annex.pid)
    child.suspend()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(counted, annex)
        child.kill()
        assert asked.result() == 3
    assert annex.pid != child.pid


def test_one_that_hangs_is_ended(annex: Annex, monkeypatch: pytest.MonkeyPatch) -> None:
    assert counted(annex) == 3
    child = running(annex.pid)
    child.suspend()
    with monkeypatch.context() as hasty:
        hasty.setattr(process, "DEADLINE_S", 0.1)
        with pytest.raises(TooBusy):
            counted(annex)
    assert not child.is_running()
    assert counted(annex) == 3


def test_it_ends_with_an_api_that_is_killed() -> None:
    with subprocess.Popen((sys.executable, "-c", OF_AN_API), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as api:
        assert api.stdout is not None
        child = running(int(api.stdout.readline()))
        api.kill()
    assert until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_what_is_small_and_alone_needs_no_annex(client: TestClient) -> None:
    annex: Annex = client.app.state.desk.annex  # type: ignore[attr-defined]  # of Starlette's
    assert client.post("/v1/prompts/tokens", json={"prompt": "red"}).json()["prompt"]["tokens"] == 1
    assert annex.pid is None
    long = client.post("/v1/prompts/tokens", json={"prompt": "red " * 300}).json()["prompt"]
    assert long["tokens"] == 300
    assert annex.pid is not None
    with pytest.raises(ObjectMissing):
        annex.do("fetch", key="inputs/none.png", sha256="")
