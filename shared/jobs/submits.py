"""The submit of jobs: one SQL statement that takes their turns in the fair queue and inserts them.

The turns of a lane, a queue of one owner's jobs at a checkpoint and priority, are taken at once and divided by cost, in the order
of the jobs. Its row in `shares` is locked until the transaction ends, and other submits to the lane wait: so the statement is the
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
), lane AS MATERIALIZED (
  SELECT checkpoint, priority, owner, coalesce(clocks.virtual_now, 0) AS now, length, room, (
    SELECT count(*) FROM (
      SELECT FROM jobs WHERE jobs.owner = sums.owner AND jobs.checkpoint = sums.checkpoint AND state = 'queued' AND NOT parked
      AND jobs.priority >= sums.priority LIMIT coalesce(room, 0)
    ) AS waiting
  ) AS claimable
  FROM (
    SELECT checkpoint, priority, owner, sum(length) AS length, min(room) AS room FROM new GROUP BY checkpoint, priority, owner
  ) AS sums
  LEFT JOIN clocks USING (checkpoint, priority)
), taken AS (
  -- In one order, so that two who want several lanes wait for each other instead of for ever.
  INSERT INTO shares AS share (checkpoint, priority, owner, finish)
  SELECT checkpoint, priority, owner, now + length FROM lane ORDER BY checkpoint, priority, owner
  ON CONFLICT (checkpoint, priority, owner) DO UPDATE
  SET finish = (
    SELECT greatest(share.finish, lane.now) + lane.length FROM lane
    WHERE (lane.checkpoint, lane.priority, lane.owner) = (share.checkpoint, share.priority, share.owner)
  )
  RETURNING checkpoint, priority, owner, finish
)
INSERT INTO jobs (virtual_start, virtual_finish, parked, expires_at, {_NAMES})
SELECT finish - lane.length + sum(new.length) OVER before - new.length, finish - lane.length + sum(new.length) OVER before,
  coalesce(row_number() OVER before > lane.room - claimable, false), now() + make_interval(secs => expires_in_s), {_VALUES}
FROM new JOIN lane USING (checkpoint, priority, owner) JOIN taken USING (checkpoint, priority, owner)
WINDOW before AS (PARTITION BY checkpoint, priority, owner ORDER BY place ROWS UNBOUNDED PRECEDING)
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
