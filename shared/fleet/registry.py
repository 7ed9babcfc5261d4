"""Registry of gpu workers, checkpoints and other weights. Only this module writes the tables workers, checkpoints and weights."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from difflib import get_close_matches
from types import MappingProxyType

from sqlalchemy import Float, cast, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.errors import UnknownWeights, WorkerNotFound
from shared.files.weights import Kind, WeightsFile
from shared.infra.tables import CheckpointRow, JobRow, WeightsRow, WorkerRow
from shared.vocabulary.states import JobState

FORGET_AFTER = timedelta(days=1)
# Workers look through their folders more often than this; what none of them has seen for so long is gone.
WEIGHTS_SEEN_WITHIN = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker's last report, its running jobs, and whether it is alive."""

    id: str
    checkpoint: str
    intends: str | None
    keeps: int
    swaps: int
    hostname: str
    device: str
    slots: int
    started_at: datetime
    seen_at: datetime
    speed: float | None
    tick_s: float | None
    batch_fill: float | None
    running: int
    unfit: str | None
    temperature_c: float | None
    ecc_errors: int | None
    xid: int | None
    draining_at: datetime | None
    # The cost of the steps that its running jobs have made: what would be lost if it died now.
    at_stake: float
    is_alive: bool


def announce(
    session: Session,
    *,
    worker_id: str,
    checkpoint: str,
    size_bytes: int,
    hostname: str,
    device: str,
    slots: int,
    sha256: str | None = None,
    keeps: int = 1,
) -> None:
    """Record that a worker has loaded a checkpoint and takes jobs; `keeps` is how many it keeps warm. A restart does so again."""
    session.execute(
        insert(CheckpointRow)
        .values(name=checkpoint, size_bytes=size_bytes, sha256=sha256)
        .on_conflict_do_update(index_elements=["name"], set_={"size_bytes": size_bytes, "sha256": sha256})
    )
    worker = {"checkpoint": checkpoint, "hostname": hostname, "device": device, "slots": slots, "keeps": keeps}
    fresh = {**worker, "started_at": func.now(), "seen_at": func.now(), "unfit": None, "intends": None, "swaps": 0}
    session.execute(
        insert(WorkerRow).values(id=worker_id, **worker).on_conflict_do_update(index_elements=["id"], set_=fresh)
    )


def beat(
    session: Session,
    worker_id: str,
    *,
    speed: float = 0.0,
    tick_s: float = 0.0,
    batch_fill: float = 0.0,
    vitals: Mapping[str, float | None] = MappingProxyType({}),
) -> bool:
    """Record a worker's heartbeat and speed: cost per second, seconds per tick, images per UNet call.

    `vitals` are the columns of its GPU's health. Returns whether the worker is asked to drain.
    """
    updated = session.execute(
        update(WorkerRow)
        .where(WorkerRow.id == worker_id)
        .values(seen_at=func.now(), speed=speed or None, tick_s=tick_s or None, batch_fill=batch_fill or None, **vitals)
        .returning(WorkerRow.draining_at)
    )
    return updated.scalar() is not None


def drain(session: Session, worker_id: str, *, is_draining: bool) -> None:
    """Ask a worker to finish its jobs and take no more, also after a restart; or let it take jobs again.

    Raises `WorkerNotFound`.
    """
    since = func.coalesce(WorkerRow.draining_at, func.now()) if is_draining else None
    asked = update(WorkerRow).where(WorkerRow.id == worker_id).values(draining_at=since).returning(WorkerRow.id)
    if session.execute(asked).first() is None:
        raise WorkerNotFound(f"No worker has the id {worker_id!r}; GET /v1/workers lists them.")


def mark_unfit(session: Session, worker_id: str, reason: str) -> None:
    """Record why a worker takes itself out of service. It counts as none until it announces itself again."""
    session.execute(update(WorkerRow).where(WorkerRow.id == worker_id).values(unfit=reason))


def retire(session: Session, worker_id: str) -> None:
    """Delete a worker that stops. A drained one stays, to be drained after a restart; so does an unfit one, to be seen."""
    is_remembered = WorkerRow.draining_at.is_not(None) | WorkerRow.unfit.is_not(None)
    session.execute(delete(WorkerRow).where(WorkerRow.id == worker_id, ~is_remembered))


def forget(session: Session) -> None:
    """Delete workers that have been silent for `FORGET_AFTER`."""
    session.execute(delete(WorkerRow).where(WorkerRow.seen_at < func.now() - FORGET_AFTER))


def workers(session: Session, *, silent_after_s: float) -> Sequence[WorkerStatus]:
    """List all workers by id."""
    done = cast(JobRow.cost, Float) * JobRow.steps_done / func.nullif(JobRow.steps_total, 0)
    running = (
        select(JobRow.worker_id, func.count().label("jobs"), func.sum(done).label("done"))
        .where(JobRow.state == JobState.RUNNING)
        .group_by(JobRow.worker_id)
        .subquery()
    )
    rows = session.execute(
        select(
            WorkerRow.id,
            WorkerRow.checkpoint,
            WorkerRow.intends,
            WorkerRow.keeps,
            WorkerRow.swaps,
            WorkerRow.hostname,
            WorkerRow.device,
            WorkerRow.slots,
            WorkerRow.started_at,
            WorkerRow.seen_at,
            WorkerRow.speed,
            WorkerRow.tick_s,
            WorkerRow.batch_fill,
            WorkerRow.unfit,
            WorkerRow.temperature_c,
            WorkerRow.ecc_errors,
            WorkerRow.xid,
            WorkerRow.draining_at,
            func.coalesce(running.c.jobs, 0).label("running"),
            func.coalesce(running.c.done, 0.0).label("at_stake"),
            (WorkerRow.seen_at > func.now() - timedelta(seconds=silent_after_s)).label("is_alive"),
        )
        .join(running, running.c.worker_id == WorkerRow.id, isouter=True)
        .order_by(WorkerRow.id)
    )
    return [WorkerStatus(**row) for row in rows.mappings()]


def announce_weights(session: Session, files: Iterable[WeightsFile]) -> None:
    """Record the LoRAs, embeddings and VAEs that a worker has in its folders now."""
    rows = [
        {
            "kind": file.kind,
            "name": file.name,
            "alias": file.alias,
            "size_bytes": file.size_bytes,
            "vectors": file.vectors,
        }
        for file in files
    ]
    if not rows:
        return
    insertion = insert(WeightsRow).values(sorted(rows, key=lambda row: (row["kind"], row["name"])))
    fresh = {column: insertion.excluded[column] for column in ("alias", "size_bytes", "vectors")}
    session.execute(
        insertion.on_conflict_do_update(index_elements=["kind", "name"], set_={**fresh, "seen_at": func.now()})
    )


def weights(session: Session, kind: Kind, *, silent_after_s: float) -> Sequence[WeightsRow]:
    """List the weights of a kind by name: those that a worker has seen lately, or all while no worker is alive."""
    known = select(WeightsRow).where(WeightsRow.kind == kind).order_by(WeightsRow.name)
    alive = select(WorkerRow.id).where(WorkerRow.seen_at > func.now() - timedelta(seconds=silent_after_s)).limit(1)
    if session.execute(alive).first() is not None:
        known = known.where(WeightsRow.seen_at > func.now() - WEIGHTS_SEEN_WITHIN)
    return session.scalars(known).all()


def resolve_weights(session: Session, kind: Kind, wanted: str, *, silent_after_s: float) -> str:
    """Find weights by name or alias, ignoring case, and return their name. Raises `UnknownWeights`."""
    known = weights(session, kind, silent_after_s=silent_after_s)
    names = {row.alias.casefold(): row.name for row in known if row.alias}
    names |= {row.name.casefold(): row.name for row in known}
    exact = next((row.name for row in known if row.name == wanted), None)
    found = exact or names.get(wanted.casefold())
    if found is None:
        close = get_close_matches(wanted.casefold(), names, n=3) or list(names)[:10]
        hint = ", ".join(dict.fromkeys(names[name] for name in close)) or "none yet"
        raise UnknownWeights(f"No {kind} is named {wanted!r}. Known: {hint}.")
    return found
