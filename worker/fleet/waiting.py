"""What waits at each of many checkpoints: one statement of bounded index probes, whatever the length of the queues.

For each checkpoint it walks the jobs in the order of a claim up to the first that the worker may run (`shared.jobs.claims`),
past `FARTHEST` others at most: those that are not due, whose key is paused or at its limit, or of which the worker lacks the
second pass's checkpoint. If none of these may run, somebody else's may stand behind them; so it then asks for the first job of
each owner who has ever come to the checkpoint, of `FARTHEST` owners at most, and past `FEW` jobs of each that are not for it
now. Beyond that a checkpoint does not seem to wait, until something of it ends. Costs are counted over the first `COUNTED`
jobs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.jobs import claims

FARTHEST = 500
FEW = 8
COUNTED = 48


@dataclass(frozen=True, slots=True)
class Waiting:
    """The claimable jobs of one checkpoint. Costs are `GenerationParams.cost`."""

    checkpoint: str
    priority: int  # the highest of them
    # Virtual start of the job that a claim would take first, less the clock of its priority. <= 0 is overdue in fairness; a
    # flooder's later jobs lie far above. Choices compare lags with each other, so that a clock's offset does not matter.
    lag: float
    oldest_s: float  # how long the job that a claim would take first has waited
    cost: float  # of what waits, counted up to a bound of rows
    jobs: int  # the same, counted up to that bound
    is_all: bool = True  # whether the bound was not reached


def waiting(session: Session, worker_id: str, checkpoints: Sequence[str]) -> Sequence[Waiting]:
    """Tell of those of these checkpoints that have jobs which a worker may claim, in no order."""
    rows = session.execute(WAITING, {"worker_id": worker_id, "checkpoints": list(checkpoints)})
    return [Waiting(*row) for row in rows]


_COLUMNS = "id, owner, priority, virtual_start, created_at, not_before, expires_at, cost, params"
_BEST_FIRST = "ORDER BY priority DESC, virtual_start, id"
_MAY_RUN = f"{claims.IS_DUE} AND NOT {claims.OWNER_IS_BLOCKED} AND {claims.CAN_LOAD_SECOND}"


def _walked(most: int, columns: str = _COLUMNS) -> str:
    """Return the SQL of the jobs that a claim would walk first."""
    return f"""(
        SELECT {columns} FROM jobs
        WHERE state = 'queued' AND NOT parked AND checkpoint = wanted.checkpoint {_BEST_FIRST} LIMIT {most}
    )"""  # noqa: S608 - constants


WAITING = text(f"""
SELECT wanted.checkpoint, first.priority,
  first.virtual_start - coalesce((SELECT virtual_now FROM priority_clocks WHERE priority = first.priority), 0) AS lag,
  cast(extract(epoch FROM now() - first.created_at) AS float8) AS oldest_s,
  greatest(first.cost, counted.cost)::float8 AS cost, greatest(1, counted.jobs) AS jobs, walked < {COUNTED} AS is_all
FROM unnest(cast(:checkpoints AS text[])) AS wanted (checkpoint)
CROSS JOIN LATERAL (
  (SELECT {_COLUMNS} FROM {_walked(FARTHEST)} AS jobs WHERE {_MAY_RUN} {_BEST_FIRST} LIMIT 1)
  UNION ALL
  (
    SELECT jobs.* FROM (
      SELECT DISTINCT owner FROM (
        SELECT owner FROM shares WHERE checkpoint = wanted.checkpoint
        AND (SELECT count(*) FROM {_walked(FARTHEST, "")} AS walked) = {FARTHEST} LIMIT {FARTHEST}
      ) AS jobs WHERE NOT {claims.OWNER_IS_BLOCKED}
    ) AS came CROSS JOIN LATERAL (
      SELECT {_COLUMNS} FROM (
        -- (SELECT false): or else the index of all owners might be walked.
        SELECT {_COLUMNS} FROM jobs WHERE jobs.owner = came.owner AND checkpoint = wanted.checkpoint AND state = 'queued'
        AND parked = (SELECT false) {_BEST_FIRST} LIMIT {FEW}
      ) AS jobs WHERE {claims.IS_DUE} AND {claims.CAN_LOAD_SECOND} {_BEST_FIRST} LIMIT 1
    ) AS jobs {_BEST_FIRST} LIMIT 1
  )
  LIMIT 1
) AS first
CROSS JOIN LATERAL (
  SELECT coalesce(sum(cost) FILTER (WHERE may_run), 0) AS cost, count(*) FILTER (WHERE may_run) AS jobs, count(*) AS walked
  FROM (SELECT cost, {_MAY_RUN} AS may_run FROM {_walked(COUNTED)} AS jobs OFFSET 0) AS judged  -- OFFSET: judged once
) AS counted
""")  # noqa: S608 - constants
