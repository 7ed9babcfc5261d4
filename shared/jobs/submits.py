"""The submit of jobs: one SQL statement that takes their turns in the fair queue and inserts them.

The turns of a lane, a queue of one owner's jobs at a checkpoint and priority, are taken at once and divided by cost, in the order
of the jobs. Its row in `shares` is locked until the transaction ends, and other submits to the lane wait: so the statement is the
last of its transaction, and a commit is all that is waited for. `shared.jobs.fair_queue` says what turns are.

A limited key has as many claimable jobs of a checkpoint and priority as it may run, and the rest parked: else claims would walk
past all that it has waiting whenever it is at its limit.
"""

from sqlalchemy import text

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
