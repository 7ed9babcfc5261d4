"""Start-time fair queuing (Goyal, Vin, Cheng 1996) of the jobs of a priority over all checkpoints, with its tags in rows.

A job's length is its cost over its key's weight. Its virtual start is the virtual finish of its owner's last job, of whatever
checkpoint, or the farm's clock if that is later; its virtual finish is start + length. Claims take the smallest start of a
checkpoint (`shared.jobs.claims`, with an example), and workers turn to the checkpoint whose smallest start is least
(`worker.fleet.waiting`). So owners with a backlog are served by their weights, however many checkpoints they name; an owner who
comes back is next, and idle time saves nothing up.

Claims move the clock, but not past the first job that their worker could have taken elsewhere, so that a flood at one checkpoint
drives it past nobody. A checkpoint that few workers can load may fall behind it. Who comes there then starts as much earlier as
it is behind: beside those who wait there, not after all of them. How far an owner is ahead of the farm's clock, for what it had
elsewhere, counts there, too. It is behind by the clock less its first claimable start, or less its own clock, whichever is less:
a job that nobody may claim holds nothing back. Within a lane, an owner's jobs at a checkpoint, starts are at least as far apart
as the jobs are long.

Submits take a turn for each job (`shared.jobs.submits`); a requeued job keeps its turn. This module writes `owner_shares` and
`shares`, to give turns back, and sets `jobs.parked` to false.
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
    for statement in (_GIVE_BACK_TO_OWNERS, _GIVE_BACK_TO_LANES):  # in the order in which submits lock the rows
        session.execute(statement, {"ids": list(job_ids)})


def unpark(session: Session) -> int:
    """Unpark jobs where canceled ones left room or a limit was raised. Returns how many."""
    moved = session.execute(UNPARK)
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


_GIVE_BACK_TO_OWNERS = text("""
WITH gone AS (
  SELECT priority, owner, sum(virtual_finish - virtual_start) AS length
  FROM jobs WHERE id = ANY(:ids) AND started_at IS NULL GROUP BY priority, owner
), held AS (
  SELECT owner_shares.* FROM owner_shares JOIN gone USING (priority, owner) ORDER BY priority, owner FOR UPDATE OF owner_shares
)
UPDATE owner_shares AS share SET finish = share.finish - gone.length FROM held JOIN gone USING (priority, owner)
WHERE (share.priority, share.owner) = (held.priority, held.owner)
""").bindparams(bindparam("ids"))

# Between two jobs of a lane its owner may have had others elsewhere: if they are gone, too, they leave no gap.
_GIVE_BACK_TO_LANES = text("""
WITH gone AS (
  SELECT checkpoint, priority, owner, sum(virtual_finish - virtual_start) AS length
  FROM jobs WHERE id = ANY(:ids) AND started_at IS NULL GROUP BY checkpoint, priority, owner
), held AS (
  SELECT shares.* FROM shares JOIN gone USING (checkpoint, priority, owner)
  ORDER BY checkpoint, priority, owner FOR UPDATE OF shares
)
UPDATE shares SET finish = least(shares.finish - gone.length, owner_shares.finish)
FROM held JOIN gone USING (checkpoint, priority, owner) LEFT JOIN owner_shares USING (priority, owner)
WHERE (shares.checkpoint, shares.priority, shares.owner) = (held.checkpoint, held.priority, held.owner)
""").bindparams(bindparam("ids"))

# From one lane with parked jobs to the next is a step of an index. What a claim is just taking waits for the next time.
UNPARK = text("""
WITH RECURSIVE parted AS (
  (SELECT owner, checkpoint FROM jobs WHERE state = 'queued' AND parked ORDER BY owner, checkpoint LIMIT 1)
  UNION ALL
  SELECT next.* FROM parted CROSS JOIN LATERAL (
    SELECT owner, checkpoint FROM jobs
    WHERE state = 'queued' AND parked AND (owner, checkpoint) > (parted.owner, parted.checkpoint)
    ORDER BY owner, checkpoint LIMIT 1
  ) AS next
), lane AS (
  SELECT owner, checkpoint, coalesce((SELECT max_running FROM keys WHERE keys.id = parted.owner), 1000) AS room FROM parted
)
UPDATE jobs SET parked = false WHERE id = ANY(ARRAY(
  SELECT next.id FROM lane CROSS JOIN LATERAL (
    SELECT id FROM jobs AS parked
    WHERE parked.owner = lane.owner AND parked.checkpoint = lane.checkpoint AND state = 'queued' AND parked
    ORDER BY priority DESC, virtual_start, id
    LIMIT greatest(0, room - (
      SELECT count(*) FROM (
        SELECT FROM jobs AS claimable
        WHERE claimable.owner = lane.owner AND claimable.checkpoint = lane.checkpoint AND state = 'queued' AND NOT parked
        ORDER BY priority DESC, virtual_start, id LIMIT room
      ) AS counted
    )) FOR UPDATE SKIP LOCKED
  ) AS next
))
""")
