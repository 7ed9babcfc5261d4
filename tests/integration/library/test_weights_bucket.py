"""Weights in the bucket, on a real S3: pushed by `farm`, listed by their headers, fetched into a bounded cache, let go."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from api.cli.app import main
from shared.errors import ObjectDamaged, StorageUnavailable, WeightsMissing
from shared.files import checkpoints
from shared.files.weights import Kind, Shelves
from shared.fleet import weights_bucket
from shared.fleet.weights_bucket import PREFIX, BucketFile
from shared.infra import large_objects
from shared.infra.storage import Storage
from shared.settings import Settings
from tests.support import freezing, studio
from tests.support.bad_store import BadStore, bad_store
from tests.support.headers import SD15, write
from worker.library import bucket_stock
from worker.library.bucket_stock import BucketStock
from worker.library.library import Library
from worker.library.weights_cache import WeightsCache

BULK = {**SD15, "cond_stage_model.transformer.bulk": [3_000_000]}  # three chunks
LORA = {
    f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_{end}.weight": torch.zeros(shape)
    for end, shape in (("down", (4, 768)), ("up", (320, 4)))
}


@pytest.fixture
def bucket(storage: Storage) -> Storage:
    """The bucket, without any weights."""
    storage.delete_all([one.key for one in large_objects.listed(storage, PREFIX, at_most=10_000)])
    return storage


@pytest.fixture
def bad(settings: Settings, bucket: Storage) -> Iterator[BadStore]:
    assert bucket
    with bad_store(settings) as store:
        store.cut_prefix = PREFIX
        yield store


def pushed(kind: str, path: Path, *options: str) -> str:
    """Push a file as a person does; return its digest."""
    assert main([f"{kind}s", "push", str(path), *options]) == 0
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stock(storage: Storage, folder: Path, limit: int | None = None, **options: Any) -> BucketStock:
    return BucketStock(storage, WeightsCache(folder, storage, limit_bytes=limit), **options)


def library(storage: Storage, folder: Path, limit: int | None = None, **options: Any) -> Library:
    one = Library(stock=stock(storage, folder, limit), **options)
    one.rescan()
    return one


def cached(folder: Path) -> set[str]:
    """The names of what a cache holds, whole or in part."""
    kept = (path for path in folder.rglob("*") if path.suffix in {".safetensors", ".part"})
    return {path.parent.name for path in kept}


def test_a_pushed_checkpoint_is_known_unread_and_fetched_when_it_is_wanted(
    bucket: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "x.safetensors", {**SD15, "v_pred": [1]})
    assert main(["checkpoints", "push", str(path), "--name", "mine"]) == 0
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert capsys.readouterr().out.split() == [sha256]
    one = library(bucket, tmp_path / "cache")
    entry = one.files()["mine"]
    assert (entry.sha256, entry.path, entry.in_bucket, entry.size_bytes) == (sha256, None, True, path.stat().st_size)
    assert (entry.file.in_channels, entry.file.predicts_velocity) == (4, True)
    assert cached(tmp_path / "cache") == set()
    found = one.find("mine")
    assert (found.name, found.path.read_bytes()) == ("mine", path.read_bytes())
    assert one.files()["mine"].path == found.path == entry.file.path


def test_a_config_travels_with_its_checkpoint(bucket: Storage, tmp_path: Path) -> None:
    pushed("checkpoint", studio.DEMO)
    found = library(bucket, tmp_path).find("farm-demo")
    here = checkpoints.inspect(studio.DEMO)
    assert (found.in_channels, found.dtype, found.size_bytes) == (here.in_channels, here.dtype, here.size_bytes)
    assert found.config_dir is not None
    assert here.config_dir is not None
    for config in here.config_dir.rglob("*.json"):
        assert (found.config_dir / config.relative_to(here.config_dir)).read_text() == config.read_text()


def test_a_push_under_a_used_name_replaces_it(
    bucket: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_stock, "LOOK_EVERY_S", 0.0)
    first = pushed("checkpoint", write(tmp_path / "x.safetensors", SD15))
    one = library(bucket, tmp_path / "cache")
    one.find("x")
    capsys.readouterr()
    assert pushed("checkpoint", tmp_path / "x.safetensors") == first
    assert "already in the bucket" in capsys.readouterr().err
    second = pushed("checkpoint", write(tmp_path / "x.safetensors", SD15, fill=1))
    assert "replaces the one of" in capsys.readouterr().err
    assert [file.sha256 for file in weights_bucket.look(bucket)] == [second]
    assert one.rescan()
    assert one.files()["x"].sha256 == second
    assert one.find("x").path.read_bytes() == (tmp_path / "x.safetensors").read_bytes()
    assert main(["checkpoints", "remove", "x"]) == 0
    assert main(["checkpoints", "remove", "x"]) == 1
    assert one.rescan()
    assert one.files() == {}


def test_a_farm_on_this_machine_is_found_by_its_data_folder(
    bucket: Storage,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in [name for name in os.environ if name.startswith("FARM_S3_")]:
        monkeypatch.delenv(name)
    path = write(tmp_path / "x.safetensors", SD15)
    sha256 = pushed("checkpoint", path, "--data-dir", str(freezing.data_dir(settings)))
    assert [file.sha256 for file in weights_bucket.look(bucket)] == [sha256]
    assert main(["checkpoints", "push", str(path), "--data-dir", str(tmp_path)]) == 1
    assert "start farm up there, or set FARM_S3_*" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["checkpoints", "push", "x.safetensors", "--name", "a b"], "no name for a checkpoint"),
        (["loras", "push", "lora.safetensors", "--name", ".."], "no name for a lora"),
        (["loras", "push", "lora.safetensors", "--name", "a/b"], "no name for a lora"),
        (["loras", "remove", "ü" * 101], "no name for a lora"),
        (["loras", "push", "x.safetensors"], "belongs into the checkpoint folder"),
        (["embeddings", "push", "lora.safetensors"], "this is a LoRA"),
        (["vaes", "push", "lora.safetensors"], "this is a LoRA"),
        (["checkpoints", "push", "lora.safetensors"], "this is a LoRA"),
        (["checkpoints", "push", "."], "Convert a diffusers folder"),
        (["embeddings", "remove", "none"], "no embedding named 'none'"),
        (["vaes", "remove", "none"], "no VAE named 'none'"),
    ],
)
def test_what_cannot_be_served_is_not_stored(
    bucket: Storage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    complaint: str,
) -> None:
    write(tmp_path / "x.safetensors", SD15)
    save_file(LORA, tmp_path / "lora.safetensors")
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    assert complaint in capsys.readouterr().err
    assert weights_bucket.look(bucket) == []


def test_shelves_take_what_the_bucket_has(bucket: Storage, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for name, alias in (("Soft ink ü", "Inky"), ("both", "theirs")):
        save_file(LORA, tmp_path / f"{name}.safetensors", metadata={"ss_output_name": alias})
        assert main(["loras", "push", str(tmp_path / f"{name}.safetensors")]) == 0
    save_file(LORA, own / "both.safetensors", metadata={"ss_output_name": "ours"})
    save_file({"emb_params": torch.zeros(3, 768)}, tmp_path / "word.safetensors")
    assert main(["embeddings", "push", str(tmp_path / "word.safetensors")]) == 0
    save_file({f"{half}.conv_in.weight": torch.zeros(1) for half in ("encoder", "decoder")}, tmp_path / "v.safetensors")
    assert main(["vaes", "push", str(tmp_path / "v.safetensors")]) == 0
    held = stock(bucket, tmp_path / "cache")
    held.rescan()
    shelves = Shelves.at(loras=own, elsewhere=held)
    assert {name: file.alias for name, file in shelves.loras.files().items()} == {"Soft ink ü": "Inky", "both": "ours"}
    assert shelves.embeddings.files()["word"].vectors == 3
    assert cached(tmp_path / "cache") == {"word"}  # every prompt is searched for it
    assert shelves.loras.find("both").path == own / "both.safetensors"
    ink = shelves.loras.find("inky")
    assert not ink.path.exists()
    shelves.loras.fetched(ink)
    assert ink.path.read_bytes() == (tmp_path / "Soft ink ü.safetensors").read_bytes()
    assert shelves.loras.refused == {}
    assert shelves.vaes.fetched(shelves.vaes.find("v")).path.read_bytes() == (tmp_path / "v.safetensors").read_bytes()
    assert main(["loras", "remove", "Soft ink ü"]) == 0
    assert main(["embeddings", "remove", "word"]) == 0
    assert main(["vaes", "remove", "v"]) == 0
    assert [file.name for file in weights_bucket.look(bucket)] == ["both"]
    held.cache.path(held.stocked(Kind.LORA)["Soft ink ü"].file).unlink()
    with pytest.raises(WeightsMissing, match="any more"):
        shelves.loras.fetched(ink)


def test_a_broken_download_goes_on_where_it_was(bad: BadStore, tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", BULK, fill=7)
    pushed("checkpoint", path)
    one = library(Storage(bad.settings), tmp_path / "cache")
    bad.ranges.clear()
    bad.breaks_gets = 1
    bad.cuts_gets = 1  # a store that ends early and calls it the whole
    assert one.find("x").path.read_bytes() == path.read_bytes()
    begins = [int((span or "bytes=0-")[6:].split("-")[0]) for span in bad.ranges]
    assert begins == sorted(set(begins))
    assert (len(begins), begins[0]) == (3, 0)


def test_what_came_before_a_process_died_is_not_fetched_again(bad: BadStore, tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", BULK, fill=7)
    pushed("checkpoint", path)
    one = library(Storage(bad.settings), tmp_path / "cache")
    part = one.files()["x"].file.path.with_suffix(".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(path.read_bytes()[:2_000_000])
    bad.ranges.clear()
    assert one.find("x").path.read_bytes() == path.read_bytes()
    assert bad.ranges == ["bytes=2000000-"]


def test_bytes_of_another_digest_are_never_kept(bucket: Storage, tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", SD15)
    pushed("checkpoint", path)
    one = library(bucket, tmp_path / "cache")
    (file,) = weights_bucket.look(bucket)
    bucket.put(file.key, write(tmp_path / "y", SD15, fill=1).read_bytes(), content_type="x")
    with pytest.raises(ObjectDamaged, match="twice"):
        one.find("x")
    assert cached(tmp_path / "cache") == set()
    bucket.put(file.key, path.read_bytes(), content_type="x")
    part = one.files()["x"].file.path.with_suffix(".part")
    part.write_bytes(b"what another file left")
    assert one.find("x").path.read_bytes() == path.read_bytes()
    one.distrust("x")
    assert not one.files()["x"].is_here


def test_the_cache_is_bounded_and_the_least_recently_used_goes(bucket: Storage, tmp_path: Path) -> None:
    size = write(tmp_path / "a.safetensors", BULK).stat().st_size
    for number, name in enumerate("abc"):
        pushed("checkpoint", write(tmp_path / f"{name}.safetensors", BULK, fill=number))
    pushed("checkpoint", write(tmp_path / "huge.safetensors", {**BULK, "more": [size * 3]}))
    cache = tmp_path / "cache"
    one = library(bucket, cache, size * 2 + 1000)
    assert list(one.files()) == ["a", "b", "c"]
    assert "do not fit into the cache" in one.refused()["huge"]
    for name in "aba":
        one.find(name)
    os.utime(next(cache.rglob("b/.*.lock")), ns=(1, 1))  # file systems may not tell times of one tick apart
    one.find("c")
    assert cached(cache) == {"a", "c"}
    with ThreadPoolExecutor(2) as threads:  # each holds what it has found
        threads.submit(one.find, "a").result()
        assert one.find("c")
        with pytest.raises(WeightsMissing, match="in use"):
            library(bucket, cache, size + 1000).find("b")
    assert cached(cache) == {"a", "c"}


def test_processes_of_one_machine_fetch_a_file_once(bad: BadStore, tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", BULK)
    pushed("checkpoint", path)
    several = [library(Storage(bad.settings), tmp_path / "cache") for _ in range(4)]
    bad.ranges.clear()
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda one: one.find("x").path, several))
    assert [one.read_bytes() for one in found] == [path.read_bytes()] * 4
    assert len(bad.ranges) == 1


def test_a_bucket_that_is_away_lets_nothing_go(
    bucket: Storage, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_stock, "LOOK_EVERY_S", 0.0)
    pushed("checkpoint", write(tmp_path / "x.safetensors", SD15))
    (tmp_path / "own").mkdir()
    write(tmp_path / "own/here.safetensors", SD15)
    held = stock(bucket, tmp_path / "cache")
    one = Library(tmp_path / "own", stock=held)
    one.rescan()
    away = Storage(settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:1"}), tries=1)
    held._storage = held.cache._storage = away
    one.rescan()
    assert list(one.files()) == ["here", "x"]
    assert one.find("here").name == "here"
    with pytest.raises(StorageUnavailable):
        one.find("x")


def test_a_push_that_broke_goes_on(
    bucket: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(large_objects, "PART_BYTES", 1_000_000)
    path = write(tmp_path / "x.safetensors", BULK, fill=3)
    call, sent = Storage.call, list[int]()

    def flaky(self: Storage, operation: str, **arguments: Any) -> Any:
        if operation == "upload_part":
            sent.append(arguments["PartNumber"])
            if len(sent) == 3:
                raise StorageUnavailable("The line broke.")
        return call(self, operation, **arguments)

    monkeypatch.setattr(Storage, "call", flaky)
    assert main(["checkpoints", "push", str(path)]) == 1
    assert "push the file again to go on" in capsys.readouterr().err
    assert weights_bucket.look(bucket) == []
    pushed("checkpoint", path)
    assert sent == [1, 2, 3, 3, 4]
    assert library(bucket, tmp_path / "cache").find("x").path.read_bytes() == path.read_bytes()


def test_a_push_that_is_stopped_leaves_nothing(
    bucket: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "x.safetensors", BULK)
    file = BucketFile("checkpoint", "x", "0" * 64, path.stat().st_size, datetime.now(UTC))

    def stop(_count: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(large_objects, "PART_BYTES", 1_000_000)
    with path.open("rb") as source, pytest.raises(KeyboardInterrupt):
        large_objects.send(bucket, file.key, source, sha256=file.sha256, advance=stop)
    with path.open("rb") as source:  # and what is not what was announced is not stored
        assert not large_objects.send(bucket, file.key, source, sha256=file.sha256, advance=lambda _count: None)
    assert large_objects.unfinished(bucket, PREFIX) == {}
    assert weights_bucket.look(bucket) == []
