"""The submit of jobs: one SQL statement that takes their turns in the fair queue and inserts them.

The turns of an owner at a priority are taken at once and divided by cost, in the order of the jobs, over all checkpoints; then
each finds its place in its lane, the queue of one owner's jobs at a checkpoint and priority. The owner's row in `owner_shares`,
and the lanes' in `shares`, are locked until the transaction ends, and other submits of that owner wait: so the statement is the
last of its transaction, and a commit is all that is waited for. `shared.jobs.fair_queue` says what turns are.

A limited key has as many claimable jobs of a checkpoint and priority as it may run, and the rest parked: else claims would walk
past all that it has waiting whenever it is at its limit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text
from uuid_utils.compat import uuid7

from shared.infra.tables import JobRow
from shared.vocabulary.params import GenerationParams
from shared.vocabulary.states import JobState

# What `lifecycle` gives for each job, as JSON; the other columns follow from it or have the table's defaults.
FIELDS = {
    "id": "uuid",
    "chosen_id": "uuid",
    "owner": "text",
    "checkpoint": "text",
    "priority": "integer",
    "params": "jsonb",
    "max_attempts": "integer",
    "steps_total": "integer",
    "cost": "bigint",
    "endpoint_id": "uuid",
    "timeout_s": "float8",
    "retry_of": "uuid",
    "digest": "text",
    "sent_digest": "text",
    "batch_id": "uuid",
    "batch_index": "integer",
}
_NAMES = ", ".join(FIELDS)
_VALUES = ", ".join(f"new.{name}" for name in FIELDS)
_TYPED = ", ".join(f"{name} {kind}" for name, kind in FIELDS.items())

# Parameter: jobs, an array of objects with `FIELDS`, `place`, from 0, and `expires_in_s`. Returns a row for each, in any order.
_SUBMIT = f"""
WITH new AS MATERIALIZED (
  SELECT new.*, new.cost / coalesce(keys.weight, 1) AS length, keys.max_running AS room
  FROM jsonb_to_recordset(cast(:jobs AS jsonb)) AS new (place integer, expires_in_s float8, {_TYPED})
  LEFT JOIN keys ON keys.id = new.owner
), opened AS (
  INSERT INTO clocks (checkpoint, priority) SELECT DISTINCT checkpoint, priority FROM new ORDER BY checkpoint, priority
  ON CONFLICT DO NOTHING
), begun AS (
  INSERT INTO priority_clocks (priority) SELECT DISTINCT priority FROM new ORDER BY priority ON CONFLICT DO NOTHING
), owner AS MATERIALIZED (
  SELECT priority, owner, length, coalesce(virtual_now, 0) AS now
  FROM (SELECT priority, owner, sum(length) AS length FROM new GROUP BY priority, owner) AS sums
  LEFT JOIN priority_clocks USING (priority)
), lane AS MATERIALIZED (
  SELECT checkpoint, priority, owner, room, (
    SELECT count(*) FROM (
      SELECT FROM jobs WHERE jobs.owner = sums.owner AND jobs.checkpoint = sums.checkpoint AND state = 'queued' AND NOT parked
      AND jobs.priority >= sums.priority LIMIT coalesce(room, 0)
    ) AS waiting
  ) AS claimable, now - least(now, (
    SELECT greatest(jobs.virtual_start, clocks.virtual_now)
    FROM jobs WHERE jobs.checkpoint = sums.checkpoint AND jobs.priority = sums.priority AND state = 'queued' AND NOT parked
    ORDER BY virtual_start, id LIMIT 1
  )) AS behind
  FROM (
    SELECT checkpoint, priority, owner, min(room) AS room FROM new GROUP BY checkpoint, priority, owner
  ) AS sums
  JOIN owner USING (priority, owner)
  LEFT JOIN clocks USING (checkpoint, priority)
), charged AS (
  -- In one order, so that two who want several turns wait for each other instead of for ever.
  INSERT INTO owner_shares AS share (priority, owner, finish)
  SELECT priority, owner, now + length FROM owner ORDER BY priority, owner
  ON CONFLICT (priority, owner) DO UPDATE
  SET finish = (
    SELECT greatest(share.finish, owner.now) + owner.length FROM owner
    WHERE (owner.priority, owner.owner) = (share.priority, share.owner)
  )
  RETURNING priority, owner, finish
), due AS MATERIALIZED (
  SELECT place, checkpoint, priority, owner, new.length,
    finish - owner.length + sum(new.length) OVER of_owner - new.length - behind AS start,
    sum(new.length) OVER of_lane - new.length AS before,
    coalesce(row_number() OVER of_lane > lane.room - claimable, false) AS parked
  FROM new JOIN owner USING (priority, owner) JOIN charged USING (priority, owner) JOIN lane USING (checkpoint, priority, owner)
  WINDOW of_owner AS (PARTITION BY priority, owner ORDER BY place ROWS UNBOUNDED PRECEDING),
    of_lane AS (PARTITION BY checkpoint, priority, owner ORDER BY place ROWS UNBOUNDED PRECEDING)
), ended AS MATERIALIZED (
  -- OFFSET: the rows are locked in that order, as releases before schema 0024 do, which know no owner_shares.
  SELECT checkpoint, priority, owner, (
    SELECT finish FROM shares
    WHERE (shares.checkpoint, shares.priority, shares.owner) = (used.checkpoint, used.priority, used.owner) FOR UPDATE
  ) AS finish
  FROM (SELECT DISTINCT checkpoint, priority, owner FROM due ORDER BY checkpoint, priority, owner OFFSET 0) AS used
), turn AS MATERIALIZED (
  SELECT place, checkpoint, priority, owner, parked, length, greatest(start, finish + before) AS start
  FROM due JOIN ended USING (checkpoint, priority, owner)
), moved AS (
  INSERT INTO shares AS share (checkpoint, priority, owner, finish)
  SELECT checkpoint, priority, owner, max(start + length) FROM turn
  GROUP BY checkpoint, priority, owner ORDER BY checkpoint, priority, owner
  ON CONFLICT (checkpoint, priority, owner) DO UPDATE SET finish = greatest(share.finish, excluded.finish)
)
INSERT INTO jobs (virtual_start, virtual_finish, parked, expires_at, {_NAMES})
SELECT turn.start, turn.start + turn.length, turn.parked, now() + make_interval(secs => expires_in_s), {_VALUES}
FROM new JOIN turn USING (place)
RETURNING id, virtual_start, virtual_finish, parked, created_at, expires_at
"""  # noqa: S608 - constants

SUBMIT = text(_SUBMIT)
# For `Database.at_once`.
SUBMIT_AT_ONCE = _SUBMIT.replace(":jobs", "%(jobs)s")

# The table's defaults.
_AS_SUBMITTED: Mapping[str, Any] = {
    **dict.fromkeys(("attempt", "faults", "losses", "steps_done", "resumed_from_step"), 0),
    **dict.fromkeys(("suspect", "is_swept"), False),
    "state": JobState.QUEUED,
    "version": 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job to submit.

    It expires unless it is claimed within `expires_in_s`; an attempt that runs longer than `timeout_s` fails it.
    """

    params: GenerationParams
    max_attempts: int
    owner: str = "anonymous"
    priority: int = 0
    # Who hears of it, besides its owner's registered receivers.
    endpoint_id: UUID | None = None
    expires_in_s: float | None = None
    timeout_s: float | None = None
    retry_of: UUID | None = None
    # The id to store it by, and what its client calls it, if that is another.
    job_id: UUID | None = None
    chosen_id: UUID | None = None
    # Of what the client sent under its id, so that the same again is this job.
    digest: str | None = None
    sent_digest: str | None = None
    batch_id: UUID | None = None
    batch_index: int | None = None


def fields(order: NewJob) -> dict[str, Any]:
    """Return `FIELDS` of a job to store."""
    return {
        "id": order.job_id or uuid7(),
        "chosen_id": order.chosen_id,
        "owner": order.owner,
        "checkpoint": order.params.checkpoint,
        "priority": order.priority,
        # Without defaults, which are what a job without the field means: a worker of the release before, which lacks the newest
        # field and forbids what it does not know, can claim every job that does not use it.
        "params": order.params.model_dump(mode="json", exclude_defaults=True),
        "max_attempts": order.max_attempts,
        "steps_total": order.params.unet_calls,
        "cost": order.params.cost,
        "endpoint_id": order.endpoint_id,
        "timeout_s": order.timeout_s,
        "retry_of": order.retry_of,
        "digest": order.digest,
        "sent_digest": order.sent_digest,
        "batch_id": order.batch_id,
        "batch_index": order.batch_index,
    }


def row(given: Mapping[str, Any], told: Mapping[str, Any]) -> JobRow:
    """Return the job that was stored: what was given for it, what the statement told of it, and the defaults."""
    columns = {**_AS_SUBMITTED, **given, **told}
    return JobRow(**{name: value for name, value in columns.items() if value is not None})
