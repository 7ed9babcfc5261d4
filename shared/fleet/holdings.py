"""Holdings: the checkpoints that each gpu worker can load, and from how near. Only this module writes the table holdings."""

from collections.abc import Iterable, Sequence
from datetime import timedelta

from sqlalchemy import delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.fleet.weights_bucket import BucketFile
from shared.infra.tables import CheckpointRow, HoldingRow, WorkerRow
from shared.vocabulary.holdings import Holding as Holding
from shared.vocabulary.holdings import Tier as Tier


def hold(session: Session, worker_id: str, holdings: Sequence[Holding]) -> None:
    """Record a worker's whole library as it is now; what is not in it any more is let go."""
    _announce(session, holdings)
    names = [one.checkpoint for one in holdings]
    session.execute(delete(HoldingRow).where(HoldingRow.worker_id == worker_id, HoldingRow.checkpoint.not_in(names)))
    _write(session, worker_id, holdings)
    session.execute(_DIGEST, {"worker_id": worker_id})


def hold_also(session: Session, worker_id: str, holdings: Sequence[Holding]) -> None:
    """Record what has changed in a worker's library. The checkpoints have been announced."""
    _write(session, worker_id, holdings)
    session.execute(_DIGEST, {"worker_id": worker_id})


def intend(session: Session, worker_id: str, checkpoint: str, *, silent_after_s: float, at_most: int = 1) -> bool:
    """Record that a worker is about to make a checkpoint resident, unless `at_most` live others have it or intend to.

    Workers that want the same checkpoint ask one after the other: an advisory lock on its name lasts to the transaction's end.
    """
    session.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": f"checkpoint {checkpoint}"})
    others = (
        select(func.count())
        .select_from(WorkerRow)
        .where(
            WorkerRow.id != worker_id,
            WorkerRow.unfit.is_(None),
            WorkerRow.draining_at.is_(None),
            WorkerRow.seen_at > func.now() - timedelta(seconds=silent_after_s),
            func.coalesce(WorkerRow.intends, WorkerRow.checkpoint) == checkpoint,
        )
    )
    if session.execute(others).scalar_one() >= at_most:
        return False
    session.execute(update(WorkerRow).where(WorkerRow.id == worker_id).values(intends=checkpoint))
    return True


def give_up(session: Session, worker_id: str) -> None:
    """Record that a worker makes nothing else resident after all."""
    session.execute(update(WorkerRow).where(WorkerRow.id == worker_id).values(intends=None))


def turned(session: Session, worker_id: str, checkpoint: str) -> None:
    """Record that a checkpoint is resident on a worker now."""
    change = {"checkpoint": checkpoint, "intends": None, "swaps": WorkerRow.swaps + 1}
    session.execute(update(WorkerRow).where(WorkerRow.id == worker_id).values(change))


def stock(session: Session, files: Iterable[BucketFile]) -> None:
    """Put checkpoints of the bucket on the list of those that jobs may name, where no worker has told of the name."""
    rows = [
        {"name": one.name, "size_bytes": one.size_bytes, "sha256": one.sha256}
        for one in sorted(files, key=lambda one: one.name)
    ]
    if rows:
        # Row by row, not as one statement: a bucket may have more than a statement may have parameters.
        session.execute(insert(CheckpointRow).on_conflict_do_nothing(index_elements=["name"]), rows)


def _announce(session: Session, holdings: Sequence[Holding]) -> None:
    """Put checkpoints on the list of those that jobs may name."""
    rows = [
        {"name": one.checkpoint, "size_bytes": one.size_bytes, "sha256": one.sha256}
        for one in sorted(holdings, key=lambda one: one.checkpoint)
    ]
    if not rows:
        return
    insertion = insert(CheckpointRow).values(rows)
    # A worker that has not read a file yet does not know its digest; one that has, knows it for all.
    known = func.coalesce(insertion.excluded.sha256, CheckpointRow.sha256)
    fresh = {"size_bytes": insertion.excluded.size_bytes, "sha256": known}
    session.execute(insertion.on_conflict_do_update(index_elements=["name"], set_=fresh))


def _write(session: Session, worker_id: str, holdings: Sequence[Holding]) -> None:
    rows = [
        {
            "worker_id": worker_id,
            "checkpoint": one.checkpoint,
            "tier": one.tier,
            "price_s": one.price_s,
            "refused": one.refused,
        }
        for one in sorted(holdings, key=lambda one: one.checkpoint)
    ]
    if not rows:
        return
    insertion = insert(HoldingRow).values(rows)
    fresh = {column: insertion.excluded[column] for column in ("tier", "price_s", "refused")}
    session.execute(insertion.on_conflict_do_update(index_elements=["worker_id", "checkpoint"], set_=fresh))


# Of the names that it does not refuse; null where it holds nothing. Only what has changed is written.
_DIGEST = text("""
UPDATE workers SET library = held.digest
FROM (
  SELECT CASE WHEN count(*) > 0 THEN encode(sha256(convert_to(coalesce(
    string_agg(checkpoint, E'\\n' ORDER BY checkpoint) FILTER (WHERE refused IS NULL), ''
  ), 'UTF8')), 'hex') END AS digest
  FROM holdings WHERE worker_id = :worker_id
) AS held
WHERE id = :worker_id AND library IS DISTINCT FROM held.digest
""")
