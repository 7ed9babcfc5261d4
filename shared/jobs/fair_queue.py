"""Start-time fair queuing (Goyal, Vin, Cheng 1996) of the jobs of a checkpoint and priority, with its tags in rows.

A job's length is its cost over its key's weight. Its virtual start is the virtual finish of its owner's last job, or the clock if
that is later; its virtual finish is start + length. Claims take the smallest start (`shared.jobs.claims`, with an example). So
owners with a backlog are served by their weights, an owner who comes back is next, and idle time saves nothing up.

`lifecycle` takes a turn for each submitted job; a requeued job keeps its turn. This module writes `shares`, adds `clocks`, which
claims move, and sets `jobs.parked` to false.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from uuid import UUID

from sqlalchemy import CursorResult, Select, bindparam, select, text
from sqlalchemy.orm import Session

from shared.infra.tables import KeyRow
from shared.jobs import claims
from shared.vocabulary.forecast import Reason


@dataclass(frozen=True, slots=True, order=True)
class Lane:
    """A queue of one owner's jobs, in order of submission."""

    checkpoint: str
    priority: int
    owner: str


@dataclass(frozen=True, slots=True)
class Turn:
    """A job's tags, in virtual time. Claims skip a parked job until they have taken others of its owner."""

    start: float
    finish: float
    is_parked: bool


def take(session: Session, costed: Sequence[tuple[Lane, int]]) -> Sequence[Turn]:
    """Assign turns to jobs, given as lane and cost. Other submits to these lanes wait until the transaction ends."""
    costs: dict[Lane, list[int]] = {}
    for lane, cost in costed:
        costs.setdefault(lane, []).append(cost)
    # In one order, so that two who want several lanes wait for each other instead of for ever.
    turns = {lane: _turns(session, lane, costs[lane]) for lane in sorted(costs)}
    return [next(turns[lane]) for lane, _ in costed]


def _turns(session: Session, lane: Lane, costs: Sequence[int]) -> Iterator[Turn]:
    """Take one turn for all jobs of a lane and divide it by their costs."""
    of_lane = {"owner": lane.owner, "checkpoint": lane.checkpoint, "priority": lane.priority}
    whole = session.execute(_TAKE, {**of_lane, "cost": float(sum(costs))}).one()
    parked_from = math.inf if whole.room is None else max(0, whole.room - whole.claimable)
    ends = [whole.start, *(whole.start + whole.length * done / sum(costs) for done in accumulate(costs))]
    return iter([Turn(start, finish, at >= parked_from) for at, (start, finish) in enumerate(pairwise(ends))])


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


# A limited key has as many claimable jobs of a checkpoint and priority as it may run, and the rest parked: else claims would walk
# past all that it has waiting whenever it is at its limit.
_TAKE = text("""
WITH opened AS (
  INSERT INTO clocks (checkpoint, priority) VALUES (:checkpoint, :priority) ON CONFLICT DO NOTHING
), asked AS (
  SELECT coalesce((SELECT virtual_now FROM clocks WHERE checkpoint = :checkpoint AND priority = :priority), 0) AS now,
         :cost / coalesce((SELECT weight FROM keys WHERE id = :owner), 1) AS length,
         (SELECT max_running FROM keys WHERE id = :owner) AS room
)
INSERT INTO shares AS share (checkpoint, priority, owner, finish)
SELECT :checkpoint, :priority, :owner, now + length FROM asked
ON CONFLICT (checkpoint, priority, owner) DO UPDATE
SET finish = greatest(share.finish, (SELECT now FROM asked)) + (SELECT length FROM asked)
RETURNING share.finish - (SELECT length FROM asked) AS start, (SELECT length FROM asked) AS length,
  (SELECT room FROM asked) AS room,
  (SELECT count(*) FROM (
     SELECT FROM jobs WHERE owner = :owner AND checkpoint = :checkpoint AND state = 'queued' AND NOT parked
     AND priority >= :priority LIMIT (SELECT coalesce(room, 0) FROM asked)
   ) AS waiting) AS claimable
""")

_GIVE_BACK = text("""
UPDATE shares SET finish = shares.finish - gone.length
FROM (
  SELECT checkpoint, priority, owner, sum(virtual_finish - virtual_start) AS length
  FROM jobs WHERE id = ANY(:ids) AND started_at IS NULL GROUP BY checkpoint, priority, owner
) AS gone
WHERE (shares.checkpoint, shares.priority, shares.owner) = (gone.checkpoint, gone.priority, gone.owner)
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
