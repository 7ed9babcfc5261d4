"""In which order several processes run the tests."""

from collections.abc import Sequence
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
# Rooms whose tests start processes or render.
LONG = ("chaos", "e2e", "integration/deploy", "integration/diffusion", "integration/engine", "integration/worker")


def dealt(items: Sequence[pytest.Item], processes: int) -> list[pytest.Item]:
    """Order tests for pytest-xdist's `worksteal`, which gives each process an equal number of them, one share after the other.

    Each share begins with its part of the modules that take long. What it ends with is short, and stolen by who is done.
    """
    long: dict[Path, list[pytest.Item]] = {}
    short: list[pytest.Item] = []
    for item in items:
        if _takes_long(item.path):
            long.setdefault(item.path, []).append(item)
        else:
            short.append(item)
    shares: list[list[pytest.Item]] = [[] for _ in range(processes)]
    for number, module in enumerate(long.values()):
        shares[number % processes] += module
    for number, share in enumerate(shares[:-1]):
        taken = sum(map(len, shares[:number]))
        room = max(0, (len(items) - taken) // (processes - number) - len(share))
        share += short[:room]
        del short[:room]
    return [item for share in [*shares, short] for item in share]


def _takes_long(path: Path) -> bool:
    return any(path.is_relative_to(TESTS / room) for room in LONG)
