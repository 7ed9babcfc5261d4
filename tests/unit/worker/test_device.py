"""What a worker makes of the machine it runs on."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shared.files import checkpoints
from shared.settings import Settings
from tests.support import studio
from worker import device


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("cores", "asked", "expected"), [(8, 8, 7), (8, 4, 4), (2, 2, 1), (1, 1, 1)])
def test_a_worker_without_a_gpu_leaves_a_core_to_the_rest(
    cores: int, asked: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "cores", lambda: cores)
    monkeypatch.delenv(device.THREADS_VARIABLE, raising=False)
    torch.set_num_threads(asked)
    device.load(Settings(device="cpu", profile_seconds=0, cache_dir=tmp_path), checkpoints.inspect(studio.DEMO))
    assert torch.get_num_threads() == expected


@pytest.mark.usefixtures("threads")
def test_a_worker_that_is_told_how_many_threads_uses_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device, "cores", lambda: 2)
    monkeypatch.setenv(device.THREADS_VARIABLE, "2")
    torch.set_num_threads(2)
    device.load(Settings(device="cpu", profile_seconds=0, cache_dir=tmp_path), checkpoints.inspect(studio.DEMO))
    assert torch.get_num_threads() == 2
