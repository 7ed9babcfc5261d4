"""Who calls in the dialect, and what that one has chosen. Clients expect one state per server; here it is one per key.

Without keys it is one per address that calls. Nothing is shared between sessions.
"""

from typing import Annotated, Any

from fastapi import Depends, Request
from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session as Transaction

from api.a1111 import names
from api.a1111.options import CHECKPOINT
from api.callers import ANONYMOUS, Reader
from api.desk import Desk
from shared.fleet import registry
from shared.infra.db import SessionRow

KEPT_DAYS = 90


async def _identity(request: Request, caller: Reader) -> str:
    if caller.owner != ANONYMOUS:
        return caller.owner
    return f"{ANONYMOUS}@{request.client.host if request.client else 'unknown'}"


SessionId = Annotated[str, Depends(_identity)]


def options(transaction: Transaction, session_id: str) -> dict[str, Any]:
    """Return what a session has chosen."""
    return transaction.scalar(select(SessionRow.options).where(SessionRow.id == session_id)) or {}


def choose(transaction: Transaction, session_id: str, chosen: dict[str, Any]) -> None:
    """Remember what a session chooses, beside what it chose before; forget sessions of long ago."""
    fresh = insert(SessionRow).values(id=session_id, options=chosen)
    merged = {"options": SessionRow.options.op("||")(fresh.excluded.options), "changed_at": func.now()}
    transaction.execute(fresh.on_conflict_do_update(index_elements=["id"], set_=merged))
    old = func.now() - func.make_interval(0, 0, 0, KEPT_DAYS)
    transaction.execute(delete(SessionRow).where(SessionRow.changed_at < old))


def checkpoints(transaction: Transaction, desk: Desk) -> dict[str, str | None]:
    """Return the checkpoints of the farm with their SHA-256, the one that sessions begin with first."""
    served = registry.checkpoints(transaction, silent_after_s=desk.settings.lease_seconds)
    preferred = desk.settings.default_checkpoint
    ranked = sorted(served, key=lambda one: (one.name != preferred, not one.ready_workers, one.name))
    return {one.name: one.sha256 for one in ranked}


def in_use(chosen: dict[str, Any], known: names.Checkpoints) -> dict[str, Any]:
    """Return a session's choice with a checkpoint in it, the farm's first if it has chosen none."""
    if chosen.get(CHECKPOINT) or not known:
        return chosen
    return {**chosen, CHECKPOINT: names.title(*next(iter(known.items())))}
