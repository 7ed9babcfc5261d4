"""Sessions: A1111 clients expect one set of options per server; the farm keeps one per API key.

Without keys it keeps one per client address. Sessions share nothing.
"""

from typing import Annotated, Any

from fastapi import Depends, Request
from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session as Transaction

from api.a1111 import names
from api.a1111.errors import Impossible
from api.a1111.options import CHECKPOINT
from api.callers import Reader
from api.desk import Desk
from api.farm import checkpoints as served_checkpoints
from api.limits.owners import ANONYMOUS
from shared.infra.tables import SessionRow

KEPT_DAYS = 90


async def _identity(request: Request, caller: Reader) -> str:
    if caller.owner != ANONYMOUS:
        return caller.owner
    return f"{ANONYMOUS}@{request.client.host if request.client else 'unknown'}"


SessionId = Annotated[str, Depends(_identity)]


def options(transaction: Transaction, session_id: str) -> dict[str, Any]:
    """Return the options that a session has set."""
    return transaction.scalar(select(SessionRow.options).where(SessionRow.id == session_id)) or {}


def choose(transaction: Transaction, session_id: str, chosen: dict[str, Any]) -> None:
    """Set options of a session; the others stay. Also deletes sessions unused for `KEPT_DAYS`."""
    fresh = insert(SessionRow).values(id=session_id, options=chosen)
    merged = {"options": SessionRow.options.op("||")(fresh.excluded.options), "changed_at": func.now()}
    transaction.execute(fresh.on_conflict_do_update(index_elements=["id"], set_=merged))
    old = func.now() - func.make_interval(0, 0, 0, KEPT_DAYS)
    transaction.execute(delete(SessionRow).where(SessionRow.changed_at < old))


def checkpoints(transaction: Transaction, desk: Desk) -> names.KnownCheckpoints:
    """Return the checkpoints of the farm, the default one first."""
    served = served_checkpoints.checkpoints(transaction, silent_after_s=desk.settings.lease_seconds)
    preferred = desk.settings.default_checkpoint
    ranked = sorted(served, key=lambda one: (one.name != preferred, not one.ready_workers, one.name))
    return names.KnownCheckpoints(
        {one.name: one.sha256 for one in ranked if one.refused is None},
        {one.name: one.refused for one in ranked if one.refused is not None},
    )


def in_use(chosen: dict[str, Any], known: names.KnownCheckpoints) -> dict[str, Any]:
    """Return a session's options with a checkpoint by its title of now: the farm's first if the session has set none."""
    if not known.sha256s:
        return chosen
    wanted = chosen.get(CHECKPOINT)
    try:
        found = names.checkpoint(wanted, known) if wanted else next(iter(known.sha256s))
    except Impossible:  # it is gone, or broken: a job for it is refused by the name that was chosen
        return chosen
    return {**chosen, CHECKPOINT: names.title(found, known.sha256s[found])}
