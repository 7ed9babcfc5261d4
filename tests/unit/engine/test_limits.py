"""How large a batch may be: what pays, what fits, what failed before."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engine.limits import RECOVERY_CALLS, BatchLimits, Measurement, best_batch

MIB = 2**20
# Seconds of one call by samples, as on a device that is full from eight samples on.
SATURATING = [Measurement(samples, max(samples, 8) * 0.01, samples * 100 * MIB) for samples in (2, 4, 8, 16)]
measurements = st.lists(
    st.builds(Measurement, st.integers(1, 64), st.floats(1e-4, 10), st.integers(0, 2**36)), max_size=6
)


def limits(path: Path | None = None, *, ceiling: int = 64, free: int = 2**40, key: str = "gpu") -> BatchLimits:
    return BatchLimits(path, key=key, ceiling=ceiling, free_bytes=lambda: free)


def test_the_best_batch_is_where_larger_ones_stop_paying() -> None:
    assert best_batch(SATURATING) == 8
    assert best_batch([]) == 2


def test_without_a_profile_the_ceiling_holds() -> None:
    assert limits(ceiling=12).limit((64, 64)) == 12


def test_a_profile_holds_and_tells_the_others_by_area() -> None:
    known = limits()
    known.record((64, 64), SATURATING)
    assert known.limit((64, 64)) == 8
    assert known.limit((64, 128, "strict")) == 4
    assert known.limit((32, 32)) == 32
    assert known.limit((256, 256)) == 2  # one image with guidance must always fit the limit


def test_memory_bounds_the_batch() -> None:
    known = limits(free=500 * MIB)
    known.record((64, 64), SATURATING)
    assert known.limit((64, 64)) == 4


def test_a_profile_in_which_nothing_fitted_leaves_one_image() -> None:
    known = limits()
    known.record((128, 128), [])
    assert known.limit((128, 128)) == 2
    known.record((64, 64), SATURATING)
    assert known.limit((128, 128)) == 2


def test_what_failed_holds_for_larger_shapes_too() -> None:
    known = limits()
    known.shrink((64, 64), 8)
    assert [known.limit(shape) for shape in ((32, 64), (64, 64), (64, 96))] == [64, 4, 4]


def test_what_failed_is_halved_and_remembered(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "limits.json"
    first = limits(path)
    first.record((64, 64), SATURATING)
    first.shrink((64, 64), 8)
    again = limits(path)
    assert again.limit((64, 64)) == 4
    assert again.limit((32, 32)) == 32
    assert again.shapes == {(64, 64)}
    assert limits(path, key="another gpu").limit((64, 64)) == 64
    again.shrink((64, 64), 1)
    assert limits(path).limit((64, 64)) == 1


def test_a_lowered_limit_comes_back_by_calls_that_fit(tmp_path: Path) -> None:
    path = tmp_path / "limits.json"
    known = limits(path, ceiling=16)
    known.shrink((64, 64), 16)
    for expected in (8, 10, 12, 14, 16, 16):
        assert [limits(path, ceiling=16).limit(shape) for shape in ((64, 64), (32, 32))] == [expected, 16]
        for _ in range(RECOVERY_CALLS):
            known.fitted((64, 64), expected)
    assert json.loads(path.read_text())["gpu"]["failed"] == {}


def test_calls_that_are_not_full_and_failures_earn_nothing() -> None:
    known = limits(ceiling=16)
    known.shrink((64, 64), 16)
    for _ in range(RECOVERY_CALLS - 1):
        known.fitted((64, 64), 8)
        known.fitted((64, 64), 6)
        known.fitted((32, 32), 16)
    known.shrink((64, 64), 8)
    known.fitted((64, 64), 4)
    assert known.limit((64, 64)) == 4


def test_a_limit_that_a_smaller_shape_set_comes_back_with_it() -> None:
    known = limits(ceiling=8)
    known.shrink((64, 64), 8)
    for _ in range(2 * RECOVERY_CALLS):
        known.fitted((64, 96), 6)
    assert known.limit((64, 96)) == known.limit((64, 64)) == 8


def test_two_devices_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "limits.json"
    limits(path, key="a").record((64, 64), SATURATING)
    limits(path, key="b").record((32, 32), SATURATING)
    assert limits(path, key="a").shapes == {(64, 64)}


def test_a_folder_that_cannot_be_written_costs_only_the_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    known = limits(tmp_path / "file" / "limits.json")
    known.record((64, 64), SATURATING)
    assert known.limit((64, 64)) == 8


def test_a_file_that_cannot_be_looked_at_costs_only_the_memory(tmp_path: Path) -> None:
    known = limits(tmp_path / ("too-long-a-name" * 20) / "limits.json", ceiling=10)
    known.shrink((64, 64), 8)
    assert known.limit((64, 64)) == 4


@pytest.mark.parametrize("text", ["", "{", "[]", '{"gpu": 3}', "[" * 100_000, '{"gpu": {"profiles": {"64x64": [{}]}}}'])
def test_a_damaged_file_is_ignored(tmp_path: Path, text: str) -> None:
    path = tmp_path / "limits.json"
    path.write_text(text)
    assert limits(path, ceiling=10).limit((64, 64)) == 10


KEYS = ["samples", "seconds", "peak_bytes", "8x8", "16x8"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=8,
)


@given(profiles=json_values, failed=json_values)
def test_whatever_the_file_says_there_is_a_limit(
    tmp_path_factory: pytest.TempPathFactory, profiles: Any, failed: Any
) -> None:
    path = tmp_path_factory.mktemp("limits") / "limits.json"
    path.write_text(json.dumps({"gpu": {"profiles": profiles, "failed": failed}}))
    assert 1 <= limits(path, ceiling=16).limit((8, 8)) <= 16


@given(st.binary(max_size=40) | json_values.map(lambda value: json.dumps(value).encode()))
def test_whatever_the_file_is_there_is_a_limit(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("limits") / "limits.json"
    path.write_bytes(content)
    assert limits(path, ceiling=16).limit((8, 8)) == 16


@given(measurements, st.integers(2, 64), st.integers(0, 2**40), st.integers(8, 256), st.integers(8, 256))
def test_a_limit_is_never_above_the_ceiling_nor_below_one(
    profile: list[Measurement], ceiling: int, free: int, height: int, width: int
) -> None:
    known = limits(ceiling=ceiling, free=free)
    known.record((64, 64), profile)
    limit = known.limit((height, width))
    assert 1 <= limit <= ceiling
    assert known.limit((height, 2 * width)) <= limit or limit <= 2
