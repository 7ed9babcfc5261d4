"""A device that is full is not broken: nobody is condemned for it, and no unexamined picture is handed out."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shared.errors import OutOfMemory
from tests.support import studio
from worker.health.fitness import Fitness, Proof
from worker.residency import arena
from worker.residency.residency import Residency


def test_a_full_device_is_not_condemned(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_tensor: Any) -> Any:
        raise torch.OutOfMemoryError("no more")

    residency = Residency(studio.demo())
    monkeypatch.setattr(arena, "sums", full)
    nowhere: Any = None
    condemned: list[str] = []
    engine: Any = SimpleNamespace(submit=lambda _spec: SimpleNamespace(result=lambda _timeout_s: _raise(OutOfMemory())))
    fitness = Fitness(engine, Proof("demo", residency), nowhere, "gpu0@test", condemned.append, 1.0)
    with pytest.raises(OutOfMemory):
        fitness.vouch()
    assert fitness.examine()
    assert not condemned


def _raise(error: Exception) -> Any:
    raise error
