"""Libraries of the gpu workers, as SQL: what each can load, from how near. Reads only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Subquery, and_, case, func, literal, select
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import Session

from shared.fleet.holdings import Tier
from shared.infra.tables import HoldingRow, WorkerRow


@dataclass(frozen=True, slots=True)
class LibrarySums:
    """What a worker can load: the checkpoints in its memory beside the resident one, how many in all, and how many it refuses."""

    warm: tuple[str, ...]
    library: int
    refused: int


@cache  # it takes longer to say than to ask
def held(silent_after_s: float) -> Subquery:
    """Return a row for each worker on the list, silent ones too, and each checkpoint that it can load or refuses.

    `is_fit` is whether it is alive and fit, `takes_jobs` whether it does not drain either, `price_s` the seconds until the
    checkpoint is resident there. What is resident stands in the worker's own row: a worker of the release before has no library
    beside it, and the tiers in holdings are of a moment ago.
    """
    is_resident = HoldingRow.checkpoint == WorkerRow.checkpoint
    resident = select(
        *_worker(silent_after_s),
        WorkerRow.checkpoint,
        literal(Tier.RESIDENT.value).label("tier"),
        literal(0.0).label("price_s"),
        HoldingRow.refused,
    ).join(HoldingRow, and_(HoldingRow.worker_id == WorkerRow.id, is_resident), isouter=True)
    # What was resident until a moment ago lies no farther than in memory.
    tier = case((HoldingRow.tier == Tier.RESIDENT, Tier.RAM.value), else_=HoldingRow.tier)
    others = (
        select(*_worker(silent_after_s), HoldingRow.checkpoint, tier, HoldingRow.price_s, HoldingRow.refused)
        .join(HoldingRow, HoldingRow.worker_id == WorkerRow.id)
        .where(~is_resident)
    )
    return resident.union_all(others).subquery("held")


def libraries_of(session: Session, *, silent_after_s: float) -> Mapping[str, LibrarySums]:
    """Return the library of each worker on the list, by its id."""
    one = held(silent_after_s).c
    is_warm = one.refused.is_(None) & one.tier.in_([Tier.VRAM, Tier.RAM])
    rows = session.execute(
        select(
            one.worker_id,
            func.coalesce(func.array_agg(aggregate_order_by(one.checkpoint, one.checkpoint)).filter(is_warm), []),
            func.count().filter(one.refused.is_(None)),
            func.count().filter(one.refused.is_not(None)),
        ).group_by(one.worker_id)
    )
    return {worker_id: LibrarySums(tuple(warm), library, refused) for worker_id, warm, library, refused in rows}


def takes_jobs(silent_after_s: float) -> ColumnElement[bool]:
    """Say in SQL that a worker is alive and fit, and does not drain."""
    return and_(_is_fit(silent_after_s), WorkerRow.draining_at.is_(None))


def _is_fit(silent_after_s: float) -> ColumnElement[bool]:
    return and_(WorkerRow.seen_at > func.now() - timedelta(seconds=silent_after_s), WorkerRow.unfit.is_(None))


def _worker(silent_after_s: float) -> Sequence[ColumnElement[Any]]:
    return (
        WorkerRow.id.label("worker_id"),
        WorkerRow.intends.label("intends"),
        WorkerRow.slots.label("slots"),
        WorkerRow.speed.label("speed"),
        _is_fit(silent_after_s).label("is_fit"),
        takes_jobs(silent_after_s).label("takes_jobs"),
    )
