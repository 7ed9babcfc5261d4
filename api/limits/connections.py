"""Connections of a process: bounded, and one that nobody uses makes way for the next.

A client keeps a connection for nothing, with or without a key; refusing those who come later would let it keep them all out.
"""

import resource
from collections import Counter
from collections.abc import Iterable
from typing import Protocol, TypeVar

# Bounds sockets and their buffers, not work: a connection that waits for a job is cheap.
MOST = 10_000
# Of all connections, how many make way at once: to look for them takes milliseconds.
SHARE_CLOSED = 0.1


class Connection(Protocol):
    """A connection of a server."""

    @property
    def address(self) -> str:
        """The client's."""

    @property
    def unused_since_s(self) -> float | None:
        """When it last carried a request, or was made; None while it carries one."""


C = TypeVar("C", bound=Connection)


def most() -> int:
    """Return how many connections this process may hold: half of the files that it may open, which work needs too."""
    return min(MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)


def open_more_files() -> None:
    """Let this process open as many files as the system allows it."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))


def dispensable(connections: Iterable[C]) -> list[C]:
    """Return those to close where there are too many: of the address that has most unused ones, those unused for longest."""
    everyone = list(connections)
    unused = [(since_s, one) for one in everyone if (since_s := one.unused_since_s) is not None]
    if not unused:
        return []
    [(crowd, _)] = Counter(one.address for _, one in unused).most_common(1)
    oldest = sorted(((since_s, one) for since_s, one in unused if one.address == crowd), key=lambda found: found[0])
    return [one for _, one in oldest[: max(1, int(len(everyone) * SHARE_CLOSED))]]
