"""Gpu workers in the database, without processes."""

from typing import Any

from sqlalchemy import func, update

from shared.fleet import holdings, registry
from shared.fleet.holdings import Holding, Tier
from shared.infra.db import Database
from shared.infra.tables import WorkerRow
from tests.support.factories import DEMO

SILENT_AFTER_S = 30.0


def enlist(db: Database, *names: str, checkpoint: str = DEMO, keeps: int = 1) -> None:
    """Announce live workers that have loaded a checkpoint."""
    with db.transaction() as session:
        for name in names:
            about: dict[str, Any] = {"hostname": "h", "device": "d", "slots": 1, "size_bytes": 1, "keeps": keeps}
            registry.announce(session, worker_id=name, checkpoint=checkpoint, **about)


def hold(db: Database, worker: str, *checkpoints: str) -> None:
    """Announce a live worker that can load these."""
    enlist(db, worker)
    with db.transaction() as session:
        holdings.hold(session, worker, [Holding(name, 9, Tier.RAM, 1.0) for name in checkpoints])


def change(db: Database, name: str, **columns: Any) -> None:
    """Set columns of a worker."""
    with db.transaction() as session:
        session.execute(update(WorkerRow).where(WorkerRow.id == name).values(columns))


def silence(db: Database, name: str) -> None:
    """Let a worker have been silent for an hour."""
    change(db, name, seen_at=func.now() - func.make_interval(0, 0, 0, 0, 1))
