"""Garbage collection: when all generations are collected, and by whom."""

import gc
from threading import Event, current_thread
from typing import Any

from shared.infra.collector import rare_full_collections
from tests.support import waiting


def test_full_collections_are_a_threads_own() -> None:
    full, others = Event(), []

    def noted(phase: str, about: dict[str, Any]) -> None:
        if phase == "stop" and about["generation"] == 2:
            full.set() if current_thread().name == "garbage collection" else others.append(current_thread().name)

    before = gc.get_threshold()
    gc.callbacks.append(noted)
    try:
        with rare_full_collections(0.05):
            kept = [[n] for n in range(200_000)]  # of which Python would collect all several times
            assert full.wait(waiting.LIMIT_S)
            del kept
    finally:
        gc.callbacks.remove(noted)
    assert others == []
    assert gc.get_threshold() == before
