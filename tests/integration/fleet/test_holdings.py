"""What workers can load and are about to load, on the real database."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import func, select

from shared.fleet import holdings
from shared.fleet.holdings import Holding, Tier
from shared.infra.db import Database
from shared.infra.tables import CheckpointRow, HoldingRow, WorkerRow
from tests.support.fleet import SILENT_AFTER_S, change, enlist, silence


def held(db: Database, worker_id: str = "w") -> dict[str, tuple[str, float, str | None]]:
    with db.transaction() as session:
        rows = session.scalars(select(HoldingRow).where(HoldingRow.worker_id == worker_id))
        return {row.checkpoint: (row.tier, row.price_s, row.refused) for row in rows}


def intend(db: Database, worker_id: str, checkpoint: str = "x", *, at_most: int = 1) -> bool:
    with db.transaction() as session:
        return holdings.intend(session, worker_id, checkpoint, silent_after_s=SILENT_AFTER_S, at_most=at_most)


def intentions(db: Database) -> dict[str, str | None]:
    with db.transaction() as session:
        return dict(session.execute(select(WorkerRow.id, WorkerRow.intends)).all())


def test_a_library_is_what_was_held_last(db: Database) -> None:
    enlist(db, "w", "other")
    with db.transaction() as session:
        for name in ("w", "other"):
            holdings.hold(session, name, [Holding("x", 9, Tier.RAM, 0.5), Holding("y", 9, Tier.DISK, 4.0)])
    with db.transaction() as session:
        holdings.hold(
            session, "w", [Holding("y", 9, Tier.RESIDENT, 0.0), Holding("z", 9, Tier.BUCKET, 60.0, refused="cut")]
        )
    assert held(db) == {"y": ("resident", 0.0, None), "z": ("bucket", 60.0, "cut")}
    assert held(db, "other").keys() == {"x", "y"}
    with db.transaction() as session:
        holdings.hold_also(session, "w", [Holding("z", 9, Tier.DISK, 3.0)])
    assert held(db) == {"y": ("resident", 0.0, None), "z": ("disk", 3.0, None)}
    with db.transaction() as session:
        holdings.hold(session, "w", [])
    assert held(db) == {}


def test_what_is_held_may_be_named_by_jobs_and_a_digest_stays_known(db: Database) -> None:
    enlist(db, "w")
    for digest in ("d" * 64, None):
        with db.transaction() as session:
            holdings.hold(session, "w", [Holding("x", 9, Tier.RAM, 0.5, sha256=digest)])
    with db.transaction() as session:
        found = session.get_one(CheckpointRow, "x")
        assert (found.size_bytes, found.sha256) == (9, "d" * 64)


def test_libraries_that_are_held_at_once_wait_for_each_other_and_not_for_ever(db: Database) -> None:
    names = [f"w{n}" for n in range(4)]
    enlist(db, *names)

    def hold(worker_id: str) -> None:
        order = range(30) if worker_id in ("w0", "w2") else range(29, -1, -1)
        for _ in range(3):
            with db.transaction() as session:
                holdings.hold(session, worker_id, [Holding(f"c{n}", 9, Tier.DISK, 1.0) for n in order])

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(hold, names))
    assert [len(held(db, name)) for name in names] == [30] * 4


@pytest.mark.parametrize("at_most", [1, 2])
def test_of_workers_that_want_the_same_at_once_so_many_get_it(db: Database, at_most: int) -> None:
    names = [f"w{n}" for n in range(5)]
    enlist(db, *names)
    together = Barrier(len(names))

    def want(name: str) -> bool:
        together.wait(60)
        return intend(db, name, at_most=at_most)

    with ThreadPoolExecutor(len(names)) as pool:
        assert sum(pool.map(want, names)) == at_most
    assert list(intentions(db).values()).count("x") == at_most


def test_who_has_it_counts_unless_it_turns_to_another_or_takes_no_jobs(db: Database) -> None:
    enlist(db, "has", checkpoint="x")
    enlist(db, "wants")
    assert not intend(db, "wants")
    assert intend(db, "has", "y")
    assert intend(db, "wants")
    for name, columns in (
        ("has", {"intends": None, "unfit": "hot"}),
        ("has", {"unfit": None, "draining_at": func.now()}),
    ):
        change(db, "wants", intends=None)
        change(db, name, **columns)
        assert intend(db, "wants")
    change(db, "has", draining_at=None)
    change(db, "wants", intends=None)
    assert not intend(db, "wants")
    silence(db, "has")
    assert intend(db, "wants")


def test_a_turn_ends_an_intention(db: Database) -> None:
    enlist(db, "w", "other")
    with db.transaction() as session:
        holdings.hold(session, "w", [Holding("x", 9, Tier.RAM, 0.5)])
    assert intend(db, "w")
    with db.transaction() as session:
        holdings.give_up(session, "w")
    assert intentions(db)["w"] is None
    assert intend(db, "w")
    with db.transaction() as session:
        holdings.turned(session, "w", "x")
        found = session.get_one(WorkerRow, "w")
        assert (found.checkpoint, found.intends, found.swaps) == ("x", None, 1)
    assert not intend(db, "other")
