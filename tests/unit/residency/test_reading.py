"""Direct reading: whole files arrive bit for bit and by their digest, others are refused with a sentence."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from shared.errors import BadCheckpoint
from shared.vocabulary.holdings import Tier
from worker.residency import budgets, direct
from worker.residency.prices import Prices

TENSORS = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5, dtype=torch.float16), "n": torch.tensor(3)}


def written(path: Path) -> Path:
    save_file(TENSORS, path, {"made": "here"})
    return path


@pytest.mark.parametrize("chunk_bytes", [1, 40, 2**20])
def test_tensors_arrive_and_every_byte_counts(
    tmp_path: Path, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "CHUNK_BYTES", chunk_bytes)
    path = written(tmp_path / "w.safetensors")
    views = {"a": torch.zeros(3, 4, dtype=torch.float64), "b": torch.zeros(5, 1), "n": torch.tensor(0)}
    assert direct.read_into(path, views) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert torch.equal(views["a"], TENSORS["a"].double())
    assert torch.equal(views["b"].flatten(), TENSORS["b"].float())
    assert views["n"] == 3


@pytest.mark.parametrize("size", [0, 4, 30, -1, -40])
def test_a_cut_file_is_refused_wherever_it_was_cut(tmp_path: Path, size: int) -> None:
    path = written(tmp_path / "w.safetensors")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(BadCheckpoint, match=r"w\.safetensors: (it was cut|not a safetensors file)"):
        direct.read_into(path, {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()})


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ({"other": torch.zeros(1)}, "the tensor other is missing"),
        ({"a": torch.zeros(3, 5)}, r"the tensor a is \(3, 4\), not \(3, 5\)"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, views: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(BadCheckpoint, match=message):
        direct.read_into(written(tmp_path / "w.safetensors"), views)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]},
        {"dtype": "F33", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2]},
        {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 1 << 40]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        [],
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, entry: Any) -> None:
    header = json.dumps({"a": entry}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(BadCheckpoint, match=r"w\.safetensors: "):
        direct.read_into(path, {"a": torch.zeros(2)})


def test_a_price_is_what_was_measured_by_bytes() -> None:
    prices = Prices()
    assert prices.of(Tier.RESIDENT, 10**9) == 0
    assert prices.of(Tier.VRAM, 10**9) < prices.of(Tier.RAM, 10**9) < prices.of(Tier.DISK, 10**9)
    prices.measured(Tier.RAM, 10**9, 2.0)
    assert prices.of(Tier.RAM, 5 * 10**8) == pytest.approx(1.0)
    for _ in range(50):
        prices.measured(Tier.RAM, 10**9, 1.0)
    assert prices.of(Tier.RAM, 10**9) == pytest.approx(1.0, rel=1e-3)
    prices.measured(Tier.DISK, 10**9, 3.0)
    assert prices.of(Tier.DISK, 10**9) == pytest.approx(4.0, rel=1e-3)


def test_memory_is_what_is_free_here_or_in_the_container(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 2000 kB\nMemAvailable: 1000 kB\n")
    assert budgets.available_bytes(meminfo, tmp_path) == 1000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5\n")
    assert budgets.available_bytes(meminfo, tmp_path) == 1000 * 1024
    (tmp_path / "memory.max").write_text("1005\n")
    assert budgets.available_bytes(meminfo, tmp_path) == 1000
    assert budgets.available_bytes(tmp_path / "none", tmp_path / "none") == 0
    assert budgets.ram(7) == 7
    assert budgets.ram(None) > 0
    assert (budgets.vram(None, 10), budgets.vram(99, 10), budgets.vram(3, 10)) == (5, 10, 3)
