"""Claimable: the checkpoints of whose jobs a worker takes any, by what it holds and what the others can load. Pure."""

from collections.abc import Collection, Mapping, Sequence

from shared.vocabulary.holdings import Holding
from worker.fleet.members import Member


def loadable(holdings: Sequence[Holding]) -> Mapping[str, Holding]:
    """Return what a worker can load."""
    return {one.checkpoint: one for one in holdings if one.refused is None}


def doomed(holdings: Sequence[Holding], others: Sequence[Member], wanted: Collection[str]) -> set[str]:
    """Return the bad files that no other worker can load either: jobs of theirs are claimed, to fail with the reason.

    Those that turned bad, or were wanted lately: a folder may have thousands that nobody ever asks for.
    """
    bad = {
        one.checkpoint for one in holdings if one.refused is not None and (one.size_bytes or one.checkpoint in wanted)
    }
    return {name for name in bad if not is_loadable(name, others)}


def is_loadable(name: str, workers: Sequence[Member]) -> bool:
    """Say whether any of these workers can load a checkpoint."""
    return any(name in one.library for one in workers)
