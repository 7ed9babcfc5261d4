"""Canary results of workers: a fingerprint of the weights and a small picture, compared across workers.

Workers under one key run the same code with the same file on the same kind of device, so their results should agree. Nothing else
writes this table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.infra.tables import CanaryRow

FORGET_AFTER = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class CanaryResult:
    """The fingerprint of a worker's weights, and the raw bytes of its canary picture (height, width, 3)."""

    weights: str
    picture: bytes


def record(session: Session, key: str, worker_id: str, result: CanaryResult) -> Sequence[CanaryResult]:
    """Record a worker's result and return the latest of the others under its key."""
    new = {"weights": result.weights, "picture": result.picture, "shown_at": func.now()}
    session.execute(
        insert(CanaryRow)
        .values(key=key, worker_id=worker_id, **new)
        .on_conflict_do_update(index_elements=["key", "worker_id"], set_=new)
    )
    others = select(CanaryRow.weights, CanaryRow.picture).where(CanaryRow.key == key, CanaryRow.worker_id != worker_id)
    return [CanaryResult(weights, picture) for weights, picture in session.execute(others)]


def forget(session: Session) -> None:
    """Delete results older than `FORGET_AFTER`."""
    session.execute(delete(CanaryRow).where(CanaryRow.shown_at < func.now() - FORGET_AFTER))
