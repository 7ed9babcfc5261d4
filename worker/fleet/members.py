"""Members: the gpu workers that share out the work, as each of them sees the others. Reads only."""

from collections.abc import Collection, Mapping, Sequence
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


class Roster:
    """The list of members, read again and again. Libraries are known by their digests: of equal ones, one is read, once.

    A library is what a worker holds and does not refuse. A worker of the release before 0026 has no digest, and is read each
    time; one of the release before 0023 holds nothing: its library is the checkpoint that it serves.
    """

    def __init__(self, *, silent_after_s: float) -> None:
        self._silent_after_s = silent_after_s
        self._known: Mapping[str, frozenset[str]] = {}

    def members(self, session: Session) -> Sequence[Member]:
        """List the members by id."""
        rows = session.execute(
            select(
                *(WorkerRow.id, WorkerRow.keeps, WorkerRow.speed),
                *(WorkerRow.checkpoint, WorkerRow.intends, WorkerRow.library),
            )
            .where(
                WorkerRow.seen_at > func.now() - timedelta(seconds=self._silent_after_s),
                WorkerRow.unfit.is_(None),
                WorkerRow.draining_at.is_(None),
            )
            .order_by(WorkerRow.id)
        ).all()
        of_digest = {row.library: row.id for row in rows if row.library is not None}
        unknown = [worker for digest, worker in of_digest.items() if digest not in self._known]
        read = _libraries(session, [*unknown, *(row.id for row in rows if row.library is None)])
        known = {**self._known, **{digest: names for digest, names in read.values() if digest is not None}}
        self._known = {digest: known[digest] for digest in of_digest if digest in known}
        return [
            # Where the one that was read for all has changed this instant, the others have none until the next time.
            Member(
                name,
                keeps,
                speed,
                read[name][1] if name in read else known.get(digest or "", frozenset()),
                resident,
                intends,
            )
            for name, keeps, speed, resident, intends, digest in rows
        ]


def _libraries(session: Session, workers: Collection[str]) -> Mapping[str, tuple[str | None, frozenset[str]]]:
    """Read the libraries of these workers, each with its digest as of the same instant."""
    if not workers:
        return {}
    held = func.count(HoldingRow.checkpoint)
    loads = func.array_agg(HoldingRow.checkpoint).filter(
        HoldingRow.checkpoint.is_not(None), HoldingRow.refused.is_(None)
    )
    rows = session.execute(
        select(WorkerRow.id, WorkerRow.library, WorkerRow.checkpoint, held, loads)
        .join(HoldingRow, HoldingRow.worker_id == WorkerRow.id, isouter=True)
        .where(WorkerRow.id.in_(workers))
        .group_by(WorkerRow.id)
    )
    return {
        name: (digest, frozenset((able or ()) if count else [resident])) for name, digest, resident, count, able in rows
    }
