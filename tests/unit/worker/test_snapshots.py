"""The code that a snapshot belongs to: another version of it must not go on from the snapshot."""

import shutil
from pathlib import Path

import pytest

import worker
from worker.slots import snapshots

SOURCES = Path(worker.__file__).parent


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for package in snapshots.PACKAGES:
        shutil.copytree(SOURCES / package, tmp_path / package)
    return tmp_path


def test_the_running_code_is_what_is_digested(copy: Path) -> None:
    assert snapshots.code(copy) == snapshots.code()


@pytest.mark.parametrize("package", snapshots.PACKAGES)
def test_any_changed_source_changes_the_digest(copy: Path, package: str) -> None:
    source = sorted((copy / package).rglob("*.py"))[-1]
    source.write_text(source.read_text() + "# changed")
    assert snapshots.code(copy) != snapshots.code()


@pytest.mark.parametrize("package", snapshots.PACKAGES)
def test_a_package_without_source_has_no_digest(copy: Path, package: str) -> None:
    for source in (copy / package).rglob("*.py"):
        source.unlink()
    with pytest.raises(FileNotFoundError, match=package):
        snapshots.code(copy)


@pytest.mark.parametrize("package", snapshots.PACKAGES)
def test_a_package_that_was_moved_away_has_no_digest(copy: Path, package: str) -> None:
    shutil.rmtree(copy / package)
    with pytest.raises(FileNotFoundError, match=package):
        snapshots.code(copy)
