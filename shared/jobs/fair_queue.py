"""Start-time fair queuing (Goyal, Vin, Cheng 1996) of the jobs of a checkpoint and priority, with its tags in rows.

A job's length is its cost over its key's weight. Its virtual start is the virtual finish of its owner's last job, or the clock if
that is later; its virtual finish is start + length. Claims take the smallest start (`shared.jobs.claims`, with an example). So
owners with a backlog are served by their weights, an owner who comes back is next, and idle time saves nothing up.

Submits take a turn for each job (`shared.jobs.submits`); a requeued job keeps its turn. This module writes `shares`, to give
turns back, and sets `jobs.parked` to false.
"""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import CursorResult, Select, bindparam, select, text
from sqlalchemy.orm import Session

from shared.infra.tables import KeyRow
from shared.jobs import claims
from shared.vocabulary.forecast import Reason


def give_back(session: Session, job_ids: Sequence[UUID]) -> None:
    """Refund the turns of jobs that ended unclaimed, so that they cost their owners nothing."""
    session.execute(_GIVE_BACK, {"ids": list(job_ids)})


def unpark(session: Session) -> int:
    """Unpark jobs where canceled ones left room or a limit was raised. Returns how many."""
    moved = session.execute(_UNPARK)
    assert isinstance(moved, CursorResult)  # noqa: S101 - narrows the type; an UPDATE always returns a cursor
    return moved.rowcount


def blocked_owners() -> Select[str]:
    """Select the owners whose keys are paused or at their running limit."""
    return select(KeyRow.id).where(text(claims.IS_BLOCKED))


def block_reason(session: Session, owner: str) -> Reason | None:
    """Return why no job of an owner may be claimed now; None if its key is not blocked."""
    paused = session.execute(
        select(KeyRow.paused).where(KeyRow.id == owner, text(claims.IS_BLOCKED))
    ).scalar_one_or_none()
    if paused is None:
        return None
    return Reason.PAUSED if paused else Reason.LIMIT


_GIVE_BACK = text("""
WITH gone AS (
  SELECT checkpoint, priority, owner, sum(virtual_finish - virtual_start) AS length
  FROM jobs WHERE id = ANY(:ids) AND started_at IS NULL GROUP BY checkpoint, priority, owner
), held AS (
  -- In the order in which submits lock them.
  SELECT shares.* FROM shares JOIN gone USING (checkpoint, priority, owner)
  ORDER BY checkpoint, priority, owner FOR UPDATE OF shares
)
UPDATE shares SET finish = shares.finish - gone.length FROM held JOIN gone USING (checkpoint, priority, owner)
WHERE (shares.checkpoint, shares.priority, shares.owner) = (held.checkpoint, held.priority, held.owner)
""").bindparams(bindparam("ids"))

_UNPARK = text("""
UPDATE jobs SET parked = false WHERE id IN (
  SELECT next.id
  FROM (SELECT id AS owner, coalesce(max_running, 1000) AS room FROM keys) AS key
  CROSS JOIN checkpoints AS checkpoint
  CROSS JOIN LATERAL (
    SELECT id FROM jobs AS parked
    WHERE parked.owner = key.owner AND parked.checkpoint = checkpoint.name AND state = 'queued' AND parked
    ORDER BY priority DESC, virtual_start, id
    LIMIT greatest(0, room - (
      SELECT count(*) FROM (
        SELECT FROM jobs AS claimable WHERE claimable.owner = key.owner AND claimable.checkpoint = checkpoint.name
        AND state = 'queued' AND NOT parked LIMIT room
      ) AS counted
    ))
  ) AS next
) AND state = 'queued'
""")
