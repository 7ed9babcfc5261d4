"""The gpu workers that are alive and the checkpoints they serve. Nothing else writes `workers` and `checkpoints`."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.db import CheckpointRow, WorkerRow
from shared.errors import InvalidRequest, UnknownCheckpoint

FORGET_AFTER = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Served:
    """A checkpoint that jobs may name and the workers that hold it in memory now."""

    name: str
    size_bytes: int
    ready_workers: int
    slots: int
    announced_at: datetime


def announce(
    session: Session, *, worker_id: str, checkpoint: str, size_bytes: int, hostname: str, device: str, slots: int
) -> None:
    """Record that a worker is ready with a checkpoint in memory; again after a restart is fine."""
    session.execute(
        insert(CheckpointRow)
        .values(name=checkpoint, size_bytes=size_bytes)
        .on_conflict_do_update(index_elements=["name"], set_={"size_bytes": size_bytes})
    )
    worker = {"checkpoint": checkpoint, "hostname": hostname, "device": device, "slots": slots}
    session.execute(
        insert(WorkerRow)
        .values(id=worker_id, **worker)
        .on_conflict_do_update(index_elements=["id"], set_={**worker, "started_at": func.now(), "seen_at": func.now()})
    )


def beat(session: Session, worker_id: str) -> None:
    """Say that a worker is still there."""
    session.execute(update(WorkerRow).where(WorkerRow.id == worker_id).values(seen_at=func.now()))


def retire(session: Session, worker_id: str) -> None:
    """Take a worker that is leaving off the list."""
    session.execute(delete(WorkerRow).where(WorkerRow.id == worker_id))


def forget(session: Session) -> None:
    """Drop workers that died without a word long ago."""
    session.execute(delete(WorkerRow).where(WorkerRow.seen_at < func.now() - FORGET_AFTER))


def checkpoints(session: Session, *, silent_after_s: float) -> Sequence[Served]:
    """List every checkpoint ever announced, by name. A worker silent for longer than `silent_after_s` does not count."""
    alive = WorkerRow.seen_at > func.now() - timedelta(seconds=silent_after_s)
    rows = session.execute(
        select(
            CheckpointRow.name,
            CheckpointRow.size_bytes,
            func.count(WorkerRow.id),
            func.coalesce(func.sum(WorkerRow.slots), 0),
            CheckpointRow.announced_at,
        )
        .join(WorkerRow, (WorkerRow.checkpoint == CheckpointRow.name) & alive, isouter=True)
        .group_by(CheckpointRow.name)
        .order_by(CheckpointRow.name)
    )
    return [Served(*row) for row in rows]


def resolve_checkpoint(session: Session, wanted: str | None, *, default: str | None, silent_after_s: float) -> str:
    """Return the name of the checkpoint that a request means.

    Without a wish: the configured default, else the one that is served, else the only one known.
    """
    known = checkpoints(session, silent_after_s=silent_after_s)
    names = [served.name for served in known]
    wanted = wanted or default
    if wanted is not None:
        if wanted not in names:
            raise UnknownCheckpoint(f"No checkpoint is named {wanted!r}. Known: {', '.join(names) or 'none yet'}.")
        return wanted
    if not names:
        raise UnknownCheckpoint("No gpu worker has announced a checkpoint yet; start one, then submit again.")
    candidates = [served.name for served in known if served.ready_workers] or names
    if len(candidates) > 1:
        raise InvalidRequest(f"Say which checkpoint to use: {', '.join(candidates)}.")
    return candidates[0]
