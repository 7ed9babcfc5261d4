"""Who takes jobs and can load what, on the real database."""

from sqlalchemy import func

from shared.fleet import holdings
from shared.fleet.holdings import Holding, Tier
from shared.infra.db import Database
from tests.support.factories import DEMO
from tests.support.fleet import SILENT_AFTER_S, change, enlist, silence
from worker.fleet.members import Member, members


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
        found = members(session, silent_after_s=SILENT_AFTER_S)
    assert found == [
        Member("barred", 2, None, frozenset(), DEMO),
        Member("before", 2, None, frozenset({DEMO}), DEMO),
        Member("broad", 2, 12.5, frozenset({"x", "y"}), DEMO, intends="y"),
    ]
