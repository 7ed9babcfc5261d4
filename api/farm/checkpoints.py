"""Checkpoints that jobs may name: which workers can load each, from how near, and which one a job means."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.farm.libraries import held
from shared.errors import InvalidRequest, RefusedCheckpoint, UnknownCheckpoint
from shared.fleet.holdings import Tier
from shared.infra.tables import CheckpointRow

# How many names an error lists.
NAMES_SHOWN = 20
_FOLDERS = re.compile(r"(?<!\S)~?/(?:[^/\s:]+/)*(?=[^/\s])")


@dataclass(frozen=True, slots=True)
class ServedCheckpoint:
    """A checkpoint, and the workers that take jobs and can load it: how many, how many at once, and from how near.

    `price_s` is the least seconds until it is resident on one of them, 0 where it is; None while nobody can load it. `refused`
    says why, where every worker that has it refuses it.
    """

    name: str
    size_bytes: int
    announced_at: datetime
    sha256: str | None = None
    ready_workers: int = 0
    slots: int = 0
    resident_workers: int = 0
    warm_workers: int = 0
    loading_workers: int = 0
    price_s: float | None = None
    refused: str | None = None


def checkpoints(session: Session, *, silent_after_s: float) -> Sequence[ServedCheckpoint]:
    """List all announced checkpoints by name."""
    one = held(silent_after_s).c
    can_load = one.takes_jobs & one.refused.is_(None)
    is_refused = func.bool_and(one.refused.is_not(None)).filter(one.worker_id.is_not(None))
    rows = session.execute(
        select(
            CheckpointRow.name,
            CheckpointRow.size_bytes,
            CheckpointRow.announced_at,
            CheckpointRow.sha256,
            func.count().filter(can_load).label("ready_workers"),
            func.coalesce(func.sum(one.slots).filter(can_load), 0).label("slots"),
            func.count().filter(can_load, one.tier == Tier.RESIDENT).label("resident_workers"),
            func.count().filter(can_load, one.tier.in_([Tier.VRAM, Tier.RAM])).label("warm_workers"),
            func.count().filter(can_load, one.intends == CheckpointRow.name).label("loading_workers"),
            func.min(one.price_s).filter(can_load).label("price_s"),
            # One that is silent or drains may come back and load it.
            func.min(one.refused).filter(one.refused.is_not(None)).label("why"),
            is_refused.label("is_refused"),
        )
        .join(one.worker_id.table, one.checkpoint == CheckpointRow.name, isouter=True)
        .group_by(CheckpointRow.name)
        .order_by(CheckpointRow.name)
    )
    return [_served(dict(row)) for row in rows.mappings()]


def by_default(known: Sequence[ServedCheckpoint], default: str | None) -> str | None:
    """Return the checkpoint of jobs that name none: the default, else the only one served, else the only one; None of several."""
    if default is not None:
        return default
    loadable = [one.name for one in known if one.refused is None]
    candidates = [one.name for one in known if one.ready_workers] or loadable
    return candidates[0] if len(candidates) == 1 else None


def choose(known: Mapping[str, ServedCheckpoint], wanted: str | None, *, default: str | None) -> str:
    """Return the checkpoint for a request: the wanted one, or that of jobs that name none.

    Raises `UnknownCheckpoint`, `RefusedCheckpoint`, or `InvalidRequest` where several would do.
    """
    chosen = wanted or by_default(list(known.values()), default)
    if chosen is None:
        raise _unchosen(known)
    found = known.get(chosen)
    if found is None:
        close = get_close_matches(chosen, known, n=3) or list(known)
        raise UnknownCheckpoint(f"No checkpoint is named {chosen!r}. Known: {_listed(close) or 'none yet'}.")
    if found.refused is not None:
        raise RefusedCheckpoint(f"No worker can load the checkpoint {chosen!r}: {found.refused}")
    return chosen


def check_pair(session: Session, first: str, second: str, *, silent_after_s: float) -> None:
    """See that one worker can render both passes of a job. Raises `RefusedCheckpoint` where workers have only one or the other.

    While nobody has the one or the other, a job for them waits.
    """
    one = held(silent_after_s).c
    can_load = one.checkpoint.in_([first, second]) & one.refused.is_(None)
    rows = session.scalars(select(func.array_agg(one.checkpoint)).where(can_load).group_by(one.worker_id))
    libraries = [set(names) for names in rows]
    if {first, second} <= set().union(*libraries) and {first, second} not in libraries:
        raise RefusedCheckpoint(
            f"No worker can load both {first!r} and {second!r}, which the two passes of the job need. "
            "`farm checkpoints push` gives a checkpoint to all workers."
        )


def _unchosen(known: Mapping[str, ServedCheckpoint]) -> InvalidRequest:
    loadable = [one.name for one in known.values() if one.refused is None]
    if not loadable:
        return UnknownCheckpoint("No gpu worker has announced a checkpoint yet; start one, then submit again.")
    ready = [one.name for one in known.values() if one.ready_workers] or loadable
    return InvalidRequest(
        "Several checkpoints are available: name one in `checkpoint`, or have an operator set FARM_DEFAULT_CHECKPOINT. "
        f"They are: {_listed(ready)}."
    )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f", and {more} more: GET /v1/checkpoints lists all" if more > 0 else "")


def _served(facts: dict[str, Any]) -> ServedCheckpoint:
    why, is_refused = facts.pop("why"), facts.pop("is_refused")
    return ServedCheckpoint(**facts, refused=without_folders(str(why)) if is_refused else None)


def without_folders(reason: str) -> str:
    """Return a worker's words, most of which begin with a path, without the folders of its machine: they are not for clients."""
    about, colon, said = reason.partition(": ")
    if not colon:
        return _FOLDERS.sub("", reason)
    return about.rpartition("/")[2] + colon + _FOLDERS.sub("", said)
