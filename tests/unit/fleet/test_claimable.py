"""Whose jobs a worker claims: of what it can load, and of bad files that nobody can."""

from shared.vocabulary.holdings import Holding, Tier
from worker.fleet.claimable import doomed, loadable
from worker.fleet.members import Member


def held(name: str, refused: str | None = None, size_bytes: int = 0) -> Holding:
    return Holding(name, size_bytes, Tier.DISK, 1.0, None, refused)


def other(*library: str) -> Member:
    return Member("other", 1, None, frozenset(library), library[0])


HELD = [held("good"), held("foreign", "it is SDXL"), held("asked", "it is SDXL"), held("turned", "cut", 7)]


def test_what_is_refused_cannot_be_loaded() -> None:
    assert loadable(HELD).keys() == {"good"}


def test_jobs_of_a_bad_file_fail_where_somebody_waits_for_it() -> None:
    assert doomed(HELD, [], {"asked", "good"}) == {"asked", "turned"}


def test_jobs_of_a_bad_file_are_left_to_who_has_it_whole() -> None:
    assert doomed(HELD, [other("good"), other("turned")], {"asked"}) == {"asked"}
