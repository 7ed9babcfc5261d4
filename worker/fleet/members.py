"""Members: the gpu workers that share out the work, as each of them sees the others. Reads only."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from shared.infra.tables import HoldingRow, WorkerRow


@dataclass(frozen=True, slots=True)
class Member:
    """A worker that is alive, fit and takes jobs, as others see it. `speed` is cost a second, None while unmeasured."""

    id: str
    keeps: int  # how many checkpoints its memory keeps warm, >= 1
    speed: float | None
    library: frozenset[str]  # what it can load
    resident: str
    intends: str | None = None


def members(session: Session, *, silent_after_s: float) -> Sequence[Member]:
    """List the members by id.

    A library is what a worker holds and does not refuse. A worker of the release before holds nothing: its library is the
    checkpoint that it serves.
    """
    held = func.count(HoldingRow.checkpoint)
    loads = func.array_agg(HoldingRow.checkpoint).filter(
        HoldingRow.checkpoint.is_not(None), HoldingRow.refused.is_(None)
    )
    columns = WorkerRow.id, WorkerRow.keeps, WorkerRow.speed, WorkerRow.checkpoint, WorkerRow.intends, held, loads
    rows = session.execute(
        select(*columns)
        .join(HoldingRow, HoldingRow.worker_id == WorkerRow.id, isouter=True)
        .where(
            WorkerRow.seen_at > func.now() - timedelta(seconds=silent_after_s),
            WorkerRow.unfit.is_(None),
            WorkerRow.draining_at.is_(None),
        )
        .group_by(WorkerRow.id)
        .order_by(WorkerRow.id)
    )
    return [
        Member(name, keeps, speed, frozenset((able or ()) if held else [resident]), resident, intends)
        for name, keeps, speed, resident, intends, held, able in rows
    ]
