"""Who takes jobs and can load what, on the real database."""

from typing import Any

from sqlalchemy import event, func

from shared.fleet import holdings
from shared.fleet.holdings import Holding, Tier
from shared.infra.db import Database
from tests.support.factories import DEMO
from tests.support.fleet import SILENT_AFTER_S, change, enlist, hold, silence
from worker.fleet.members import Member, Roster


def test_members_are_workers_that_take_jobs_with_what_they_can_load(db: Database) -> None:
    enlist(db, "broad", "before", "barred", "ill", "leaving", "silent", keeps=2)
    cut = Holding("cut", 9, Tier.DISK, 1.0, refused="It is cut off.")
    with db.transaction() as session:
        for name in ("broad", "ill", "leaving", "silent"):
            holdings.hold(session, name, [Holding("x", 9, Tier.RAM, 1.0), Holding("y", 9, Tier.DISK, 9.0), cut])
        holdings.hold(session, "barred", [cut])
        assert holdings.intend(session, "broad", "y", silent_after_s=SILENT_AFTER_S)
    change(db, "broad", speed=12.5)
    change(db, "ill", unfit="It is hot.")
    change(db, "leaving", draining_at=func.now())
    silence(db, "silent")
    with db.transaction() as session:
        found = Roster(silent_after_s=SILENT_AFTER_S).members(session)
    assert found == [
        Member("barred", 2, None, frozenset(), DEMO),
        Member("before", 2, None, frozenset({DEMO}), DEMO),
        Member("broad", 2, 12.5, frozenset({"x", "y"}), DEMO, intends="y"),
    ]


def libraries(db: Database, roster: Roster) -> dict[str, frozenset[str]]:
    with db.transaction() as session:
        return {one.id: one.library for one in roster.members(session)}


def test_of_equal_libraries_one_is_read_and_once(db: Database) -> None:
    for name in ("a", "b", "c"):
        hold(db, name, "x", "y")
    roster, statements = Roster(silent_after_s=SILENT_AFTER_S), []

    def note(_: object, __: object, statement: str, parameters: Any, *___: object) -> None:
        if "holdings" in statement:
            statements.append(parameters)

    event.listen(db.engine, "before_cursor_execute", note)
    try:
        assert libraries(db, roster) == dict.fromkeys("abc", frozenset("xy"))
        assert [len(one) for one in statements] == [1]
        assert libraries(db, roster) == dict.fromkeys("abc", frozenset("xy"))
        assert len(statements) == 1
    finally:
        event.remove(db.engine, "before_cursor_execute", note)


def test_a_library_that_changes_is_read_again(db: Database) -> None:
    for name in ("a", "b"):
        hold(db, name, "x", "y")
    roster = Roster(silent_after_s=SILENT_AFTER_S)
    libraries(db, roster)
    with db.transaction() as session:
        holdings.hold_also(session, "b", [Holding("y", 9, Tier.DISK, 1.0, refused="It is cut off.")])
    assert libraries(db, roster) == {"a": frozenset("xy"), "b": frozenset("x")}
    hold(db, "b", "x", "y", "z")
    assert libraries(db, roster)["b"] == frozenset("xyz")


def test_a_worker_of_the_release_before_is_read_each_time(db: Database) -> None:
    hold(db, "a", "x")
    change(db, "a", library=None)
    roster = Roster(silent_after_s=SILENT_AFTER_S)
    assert libraries(db, roster) == {"a": frozenset("x")}
    hold(db, "a", "x", "y")
    change(db, "a", library=None)
    assert libraries(db, roster) == {"a": frozenset("xy")}
