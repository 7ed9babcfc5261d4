"""What `farm up` serves: files of this machine, else what the farm's bucket has, else the demo."""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from api.cli import checks
from api.cli.app import main
from deploy.standalone import serving
from deploy.standalone.farm import EmbeddedFarm, UpOptions
from shared.fleet.weights_bucket import PREFIX
from shared.infra import large_objects
from shared.infra.storage import Storage
from shared.settings import Settings
from tests.support import studio
from tests.support.farm import ended, submit
from tests.support.waiting import LIMIT_S
from worker.library.library import open_library


@pytest.fixture
def bucket(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """The bucket, without weights before and after; nothing names a checkpoint."""
    for name in ("FARM_CHECKPOINT", "FARM_CHECKPOINT_DIR"):
        monkeypatch.delenv(name, raising=False)
    _emptied(storage)
    yield storage
    _emptied(storage)


def _emptied(storage: Storage) -> None:
    storage.delete_all([one.key for one in large_objects.listed(storage, PREFIX, at_most=1000)])


def push(*names: str) -> None:
    for name in names:
        assert main(["checkpoints", "push", str(studio.DEMO), "--name", name]) == 0


def refusal(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What `farm up` says that does not start."""
    capsys.readouterr()
    assert main(["up", "--port", "0", *options]) == 1
    return capsys.readouterr().err


@pytest.mark.usefixtures("bucket", "db", "redis")
def test_a_farm_without_files_renders_from_the_bucket(tmp_path: Path) -> None:
    push("one", "two")
    environ = {**os.environ, "FARM_PROFILE_SECONDS": "0", "FARM_CACHE_DIR": str(tmp_path / "cache")}
    options = UpOptions(port=0, data_dir=tmp_path, device="cpu", environ=environ)
    with EmbeddedFarm(options) as farm, httpx.Client(base_url=farm.url, timeout=LIMIT_S) as http:
        assert {one["name"] for one in http.get("/v1/checkpoints").json()["checkpoints"]} == {"one", "two"}
        job = ended(http, submit(http, checkpoint="two"))
        assert (job["state"], job["params"]["checkpoint"]) == ("succeeded", "two")


@pytest.mark.usefixtures("bucket")
def test_a_name_means_a_file_of_the_bucket(tmp_path: Path, settings: Settings) -> None:
    push("one", "two")
    asked = serving.source([Path("two")])
    assert (serving.here(asked, pytest.fail), serving.from_bucket(asked, serving.in_bucket(os.environ))) == (
        [],
        ["two"],
    )
    named = settings.model_copy(update={"checkpoint": asked["FARM_CHECKPOINT"], "cache_dir": tmp_path})
    library = open_library(named)
    library.rescan()
    assert list(library.files()) == ["two"]


@pytest.mark.usefixtures("bucket")
def test_a_farm_with_nothing_to_serve_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    push("one")
    data = ("--data-dir", str(tmp_path / "data"))
    said = refusal(capsys, *data, "--checkpoint", "nowhere")
    assert "no checkpoint named nowhere" in said
    assert "the bucket (one)" in said
    assert "farm checkpoints push FILE --name nowhere" in said
    missing = refusal(capsys, *data, "--checkpoint", str(tmp_path / "missing.safetensors"))
    assert f"{tmp_path}/missing.safetensors: there is no such file" in missing
    assert main(["checkpoints", "remove", "one"]) == 0
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.setenv("FARM_CHECKPOINT_DIR", str(folder))
    assert f"put one into {folder}, or push one: farm checkpoints push FILE" in refusal(capsys, *data)


@pytest.mark.usefixtures("bucket")
def test_the_doctor_says_what_would_be_served(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (checks.checkpoint().level, "the demo" in checks.checkpoint().detail) == (checks.Level.OK, True)
    push("one", "two")
    assert checks.checkpoint().detail == "one, two"
    monkeypatch.setenv("FARM_CHECKPOINT", f"{studio.DEMO},two")
    assert checks.checkpoint().detail == "farm-demo"
    monkeypatch.setenv("FARM_CHECKPOINT", "nowhere")
    assert (checks.checkpoint().level, "push" in checks.checkpoint().fix) == (checks.Level.FAIL, True)
