"""What a worker can load: found in folders while it runs, let go, restricted, and refused with a reason."""

import os
from pathlib import Path

import pytest

from shared.errors import BadCheckpoint, WeightsMissing
from shared.files import checkpoints
from shared.files.checkpoints import CheckpointFile
from shared.files.wanted import Wanted
from tests.support.headers import SD15, write
from worker.library import checkpoint_folder
from worker.library.library import Library


def library(folder: Path, **options: object) -> Library:
    one = Library(folder, **options)  # type: ignore[arg-type]
    one.rescan()
    return one


def test_files_come_and_go_while_it_runs(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", SD15)
    (tmp_path / "sub/deep").mkdir(parents=True)
    write(tmp_path / "sub/deep/b.safetensors", SD15)
    one = library(tmp_path)
    assert list(one.files()) == ["a", "b"]
    assert not one.rescan()
    write(tmp_path / "c.safetensors", SD15)
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(WeightsMissing, match="gone"):
        one.find("a")
    assert one.rescan()
    assert list(one.files()) == ["b", "c"]
    with pytest.raises(WeightsMissing, match="no checkpoint named 'a'"):
        one.find("a")


def test_what_cannot_be_served_is_listed_with_its_reason(tmp_path: Path) -> None:
    write(tmp_path / "cut.safetensors", SD15, cut=5)
    write(tmp_path / "my favourite.safetensors", SD15)
    (tmp_path / "old.ckpt").write_bytes(b"pickle")
    write(tmp_path / os.fsdecode(b"\xff.safetensors"), SD15)  # a name that is no text
    one = library(tmp_path)
    refused = dict(one.refused())
    assert one.files() == {}
    assert "truncated" in refused.pop("cut")
    assert "rename it" in refused.pop("my favourite")
    assert "pickle" in refused.pop("old.ckpt")
    ((name, reason),) = refused.items()
    assert name == "?"
    assert reason.encode()
    with pytest.raises(BadCheckpoint, match="truncated"):
        one.find("cut")


def test_of_two_files_of_one_name_the_one_nearer_to_the_top_is_served(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write(tmp_path / "a/same.safetensors", SD15)
    write(tmp_path / "same.safetensors", SD15)
    one = library(tmp_path)
    assert one.find("same").path == tmp_path / "same.safetensors"
    assert "is taken by" in one.refused()["a/same.safetensors"]
    (tmp_path / "same.safetensors").unlink()
    one.rescan()
    assert one.find("same").path == tmp_path / "a/same.safetensors"
    assert one.refused() == {}


def test_a_file_that_is_replaced_is_another_checkpoint(tmp_path: Path) -> None:
    """Also by one of its size and time, as a copy that keeps times may be."""
    path = write(tmp_path / "a.safetensors", SD15)
    one = library(tmp_path)
    arriving, before = write(tmp_path / "new.part", SD15, fill=1), path.stat()
    os.utime(arriving, ns=(before.st_atime_ns, before.st_mtime_ns))
    arriving.replace(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert one.find("a").stamp != one.files()["a"].file.stamp  # at once, whatever was seen last
    assert one.rescan()
    assert one.find("a").stamp == one.files()["a"].file.stamp


def test_a_file_that_turns_bad_is_refused_until_it_is_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", SD15)
    one = library(tmp_path)
    write(path, SD15, cut=9)
    with pytest.raises(BadCheckpoint, match="truncated"):
        one.find("a")
    one.rescan()
    assert (list(one.files()), list(one.refused())) == ([], ["a"])
    write(path, SD15)
    one.rescan()
    assert (list(one.files()), list(one.refused())) == (["a"], [])


def test_a_folder_that_cannot_be_read_lets_nothing_go(tmp_path: Path) -> None:
    """Root reads whatever it likes, so a file stands where the folder was."""
    top = tmp_path / "top"
    (top / "sub").mkdir(parents=True)
    write(top / "a.safetensors", SD15)
    write(top / "sub/b.safetensors", SD15)
    one = library(top)
    top.rename(tmp_path / "away")
    top.write_bytes(b"")
    one.rescan()
    assert list(one.files()) == ["a", "b"]
    assert "cannot be read" in one.refused()["top"]
    top.unlink()
    (tmp_path / "away").rename(top)
    one.rescan()
    assert one.refused() == {}


def test_a_folder_that_is_suddenly_empty_is_believed_later(tmp_path: Path) -> None:
    now = 0.0
    path = write(tmp_path / "a.safetensors", SD15)
    one = library(tmp_path, clock=lambda: now)
    path.unlink()
    one.rescan()
    assert list(one.files()) == ["a"]
    now = checkpoint_folder.EMPTY_BELIEVED_S
    one.rescan()
    assert one.files() == {}


def test_thousands_of_files_are_listed_in_pieces_and_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write(tmp_path / "c0000.safetensors", SD15)
    for number in range(1, 5000):
        os.link(first, tmp_path / f"c{number:04}.safetensors")
    one = Library(tmp_path)
    listed: list[int] = []
    looked_at: list[Path] = []

    def inspect(path: Path) -> CheckpointFile:
        if len(looked_at) % checkpoint_folder.PIECE == 0:
            listed.append(len(one.files()))
        looked_at.append(path)
        return CheckpointFile(path.stem, path, "single_file", 1, "F16", 4, stamp=checkpoints.stamp(path))

    monkeypatch.setattr(checkpoints, "inspect", inspect)
    one.rescan()
    assert len(one.files()) == 5000
    assert listed == list(range(0, 5000, checkpoint_folder.PIECE))
    first.unlink()
    os.utime(write(first, SD15, fill=1), ns=(1, 1))
    (tmp_path / "c0001.safetensors").unlink()
    listed.clear()
    looked_at.clear()
    one.rescan()
    assert looked_at == [tmp_path / "c0000.safetensors"]
    assert listed == [5000]  # nothing had vanished meanwhile
    assert len(one.files()) == 4999


def test_a_list_restricts_it_in_its_order(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / f"{name}.safetensors", SD15)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write(elsewhere / "one, two.safetensors", SD15)
    d = write(elsewhere / "d.safetensors", SD15)
    one = library(tmp_path, only=f"c, {d},a,nowhere")
    assert list(one.files()) == ["c", "d", "a"]
    assert one.refused() == {"nowhere": "nowhere: no checkpoint has this name."}
    assert list(library(tmp_path, only=str(d)).files()) == ["d"]
    assert Wanted.read(str(elsewhere / "one, two.safetensors")).names == ()


def test_a_file_that_is_not_there_is_said_and_found_later(tmp_path: Path) -> None:
    path = tmp_path / "later.safetensors"
    one = Library(only=str(path))
    one.rescan()
    assert "no such file" in one.refused()["later"]
    write(path, SD15)
    one.rescan()
    assert list(one.files()) == ["later"]
    path.unlink()
    one.rescan()
    assert "no such file" in one.refused()["later"]
