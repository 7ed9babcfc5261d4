"""The start-up profile on the real UNet: what it measures is remembered, and it ends when it should."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.studio import CPU, demo
from worker.engine import profile
from worker.engine.limits import BatchLimits, Measurement


def limits(path: Path) -> BatchLimits:
    return BatchLimits(path, key="cpu", ceiling=4, free_bytes=lambda: profile.free_bytes(CPU))


def test_a_profile_is_taken_once_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "limits.json"
    calls: list[int] = []
    hook = demo().unet.register_forward_pre_hook(lambda _module, inputs: calls.append(len(inputs[0])))
    monkeypatch.setattr(profile, "CPU_SHAPES", ((8, 8),))
    try:
        profile.learn(limits(path), demo(), ceiling=4, budget_s=60)
        assert set(calls) <= {2, 4}
        assert calls[0] == 2
        taken = len(calls)
        profile.learn(limits(path), demo(), ceiling=4, budget_s=60)
        assert len(calls) == taken
    finally:
        hook.remove()
    assert limits(path).shapes == {(8, 8)}
    assert 2 <= limits(path).limit((8, 8)) <= 4


def test_a_profile_that_was_cut_short_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 2.0])
    monkeypatch.setattr(profile, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(profile, "measure", lambda *_args, **_how: iter([Measurement(2, 1.0, 1)]))
    profile.learn(limits(tmp_path / "limits.json"), demo(), ceiling=4, budget_s=1.0)
    assert limits(tmp_path / "limits.json").shapes == frozenset()


def test_a_profile_keeps_to_its_budget() -> None:
    measured = list(profile.measure(demo(), (8, 8), (2, 4, 8), deadline=time.perf_counter()))
    assert [one.samples for one in measured] == [2]


def test_running_out_of_memory_ends_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(_checkpoint: Any, _shape: Any, samples: int) -> Any:
        if samples > 2:
            raise torch.OutOfMemoryError
        return Measurement(samples, 1.0, 1)

    monkeypatch.setattr(profile, "_timed", hungry)
    measured = list(profile.measure(demo(), (8, 8), (2, 4, 8), deadline=float("inf")))
    assert [one.samples for one in measured] == [2]


def test_an_answer_lasts_for_a_while() -> None:
    answers = iter(range(10))
    now = [0.0]
    asked = profile.cached_for(lambda: next(answers), 1.0, clock=lambda: now[0])
    given = []
    for now[0] in (0.0, 0.5, 0.99, 1.0, 1.5, 3.0):
        given.append(asked())
    assert given == [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize(("last_s", "usual_s", "expected"), [(0.5, 1.0, True), (0.98, 1.0, False), (1.0, 0.5, False)])
def test_the_faster_order_in_memory_is_told_and_the_usual_one_kept(
    monkeypatch: pytest.MonkeyPatch, last_s: float, usual_s: float, expected: bool
) -> None:
    """A gain that is hardly one does not count: it would be another one at the next start, with other bits."""
    weight = demo().unet.conv_in.weight

    def timed(_checkpoint: Any, _shape: Any, samples: int) -> Any:
        is_last = weight.is_contiguous(memory_format=torch.channels_last)
        return Measurement(samples, last_s if is_last else usual_s, 1)

    monkeypatch.setattr(profile, "_timed", timed)
    assert profile.is_faster_channels_last(demo()) is expected
    assert weight.is_contiguous()


def test_the_order_of_weights_stays_where_memory_is_too_short_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(profile, "_timed", full)
    assert not profile.is_faster_channels_last(demo())
    assert demo().unet.conv_in.weight.is_contiguous()
