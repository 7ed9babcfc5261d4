"""The claim of a job: one SQL statement, a worked example and its query plan.

Jobs of a checkpoint queue by priority, highest first, then by virtual start (`shared.jobs.fair_queue`), then by id. The statement
takes the first that may run and whose second pass, where it has a checkpoint of its own, the worker can render as well. It moves
the clock of its checkpoint there and that of its priority towards it, and moves up the best parked job of its owner. Concurrent
claims skip rows that another one has locked: they never wait for each other and never take the same job.

A worker that stays with its checkpoint takes jobs out of turn: others' jobs elsewhere come before them. The clock of the priority
does not pass the first of those that it could have taken instead, by its library: else who comes next would stand behind
all that a flood was given meanwhile. What it cannot load holds the clock back for nobody, nor does what the clock has passed.

Example. Ada's key has weight 1 and a running limit of 1, Bob's has weight 2 and no limit. Every job costs 8 and has priority 0:

    act              start  finish  parked   clock   why
    Ada submits A1       0       8  no           0
    Ada submits A2       8      16  yes          0   one of hers is claimable, and only one may run
    Bob submits B1       0       4  no           0   8 / 2: his weight makes his jobs half as long
    a claim takes A1                             0   start 0, older than B1; A2 is parked no more
    a claim takes B1                             0   A2 starts at 8, and Ada is at her limit
    a claim takes none                           0   Ada is still at her limit
    A1 ends                                      0
    a claim takes A2                             8   the clock moves to the start of the job that is taken
    Bob submits B2       8      12  no           8   from the clock on, not from his 4: idle time earns nothing

`test_the_worked_example_of_a_claim` plays it on Postgres.

The plan, which `test_a_claim_walks_indexes_in_their_order` holds and `python -m tests.bench.claims` times on a million jobs:

    step                      index                  rows
    the first job             jobs_queued            in order, up to the first that is unlocked, due and not blocked
    its key, for each row     keys_pkey              1
    what the key runs         jobs_running_by_owner  as many as run, where the key has a limit
    its second checkpoint     holdings_pkey          1, where the job has one
    who else can load that    ix_holdings_checkpoint up to one that can, where this worker refuses it
    the oldest job's level    jobs_queued_by_age     1, in `OLDEST_LEVEL` alone
    the update                jobs_pkey              1
    the clock of the priority priority_clocks_pkey   1; or the table as a whole, while it is one page
    the first job elsewhere   jobs_queued_by_start   in order from the clock on, up to one that it could take
    whether it could load it  holdings_pkey          1, for each row
    the checkpoint's there    clocks_pkey            1; likewise
    the best parked job       jobs_queued_by_owner   1, in order

Nothing is sorted and no table is read whole, so a claim costs the same whatever the length of the queue.
"""

from sqlalchemy import TextClause, text

# A queued job neither waits for its next attempt nor is past its time.
IS_DUE = """
(jobs.not_before IS NULL OR jobs.not_before <= now()) AND (jobs.expires_at IS NULL OR jobs.expires_at > now())
"""

# A key is paused or at its running limit. Claims of the same instant do not see each other, so that a limit may be exceeded by
# their number.
IS_BLOCKED = """
(keys.paused OR coalesce(
    (SELECT count(*) FROM jobs AS running WHERE running.owner = keys.id AND running.state = 'running') >= keys.max_running,
    false
))
"""

# A value, not an EXISTS: a join could tempt the planner away from walking the index of jobs in order.
OWNER_IS_BLOCKED = f"coalesce((SELECT {IS_BLOCKED} FROM keys WHERE keys.id = jobs.owner), false)"  # noqa: S608 - constants

# The worker can load the checkpoint of the second pass, if that has one of its own; or everybody who has it refuses it, and the
# job fails with the reason. While nobody has it, the job waits, as for its own.
CAN_LOAD_SECOND = """
(jobs.params #>> '{hires,checkpoint}' IS NULL OR coalesce((
    SELECT mine.refused IS NULL OR NOT EXISTS (
        SELECT FROM holdings AS others WHERE others.checkpoint = mine.checkpoint AND others.refused IS NULL
    )
    FROM holdings AS mine
    WHERE mine.worker_id = :worker_id AND mine.checkpoint = jobs.params #>> '{hires,checkpoint}'
), false))
"""
# A claim looks past no more jobs than this for the first that it could have taken elsewhere.
FARTHEST = 100

_OF_OLDEST_LEVEL = """
      AND priority = (
          SELECT priority FROM jobs WHERE state = 'queued' AND checkpoint = :checkpoint ORDER BY created_at, id LIMIT 1
      )
"""


def _first(condition: str = "") -> str:
    """Return the SQL that selects and locks the job to claim. `api.farm.queue_stats.ahead` and `waiting` must agree with it."""
    return f"""(
    SELECT id FROM jobs
    WHERE state = 'queued' AND NOT parked AND checkpoint = :checkpoint {condition}
      AND NOT {OWNER_IS_BLOCKED}
      AND {IS_DUE}
      AND {CAN_LOAD_SECOND}
    ORDER BY priority DESC, virtual_start, id
    LIMIT 1 FOR UPDATE OF jobs SKIP LOCKED
)"""  # noqa: S608 - constants


# The first start from the clock on, and before that of the job that is taken, of a job that the worker could have taken. The
# bounds are values, so that the index is walked between them.
_FIRST_ELSEWHERE = f"""(
    SELECT virtual_start FROM (
        SELECT virtual_start, owner, checkpoint, not_before, expires_at FROM jobs
        WHERE state = 'queued' AND NOT parked AND priority = (SELECT priority FROM taken)
          AND virtual_start >= priority_clocks.virtual_now AND virtual_start < (SELECT virtual_start FROM taken)
        ORDER BY virtual_start LIMIT {FARTHEST}
    ) AS jobs
    WHERE {IS_DUE} AND NOT {OWNER_IS_BLOCKED} AND coalesce((
        SELECT refused IS NULL FROM holdings WHERE worker_id = :worker_id AND holdings.checkpoint = jobs.checkpoint
    ), false)
    ORDER BY virtual_start LIMIT 1
)"""  # noqa: S608 - constants


def _claim(first: str) -> TextClause:
    """Return the statement that claims the job selected by `first`. It returns that job, or no row."""
    return text(f"""
WITH taken AS (
    UPDATE jobs
    SET state = 'running', version = version + 1, attempt = attempt + 1, worker_id = :worker_id,
        lease_until = now() + make_interval(secs => :lease_s), not_before = NULL, started_at = now(),
        steps_done = 0, resumed_from_step = 0
    WHERE id = {first}
    RETURNING id, attempt, params, losses, snapshot_attempt, owner, checkpoint, priority, virtual_start
), clock AS (
    -- SKIP LOCKED: claims never wait for each other, and whoever holds the clock sets it to about the same time.
    UPDATE clocks SET virtual_now = behind.virtual_start
    FROM (
        SELECT checkpoint, priority, taken.virtual_start
        FROM clocks JOIN taken USING (checkpoint, priority)
        WHERE clocks.virtual_now < taken.virtual_start
        FOR UPDATE OF clocks SKIP LOCKED
    ) AS behind
    WHERE clocks.checkpoint = behind.checkpoint AND clocks.priority = behind.priority
), farm_clock AS (
    -- Values, not a join: nothing is sorted.
    UPDATE priority_clocks SET virtual_now = coalesce({_FIRST_ELSEWHERE}, (SELECT virtual_start FROM taken))
    WHERE priority = (
        SELECT priority FROM priority_clocks
        WHERE priority = (SELECT priority FROM taken) AND virtual_now < (SELECT virtual_start FROM taken)
        FOR UPDATE SKIP LOCKED
    )
), moved_up AS (
    -- The index then gives the best first.
    UPDATE jobs SET parked = false
    WHERE id = (
        SELECT id FROM jobs
        WHERE state = 'queued' AND parked
          AND owner = (SELECT owner FROM taken) AND checkpoint = (SELECT checkpoint FROM taken)
        ORDER BY priority DESC, virtual_start, id
        LIMIT 1 FOR UPDATE OF jobs SKIP LOCKED
    )
)
SELECT id, attempt, params, losses, snapshot_attempt,
       EXISTS (SELECT FROM keys WHERE keys.id = taken.owner AND keys.max_running IS NOT NULL) AS is_limited
FROM taken
""")  # noqa: S608 - constants


# The first job of a checkpoint. Parameters: checkpoint, worker_id, lease_s.
FIRST = _claim(_first())
# The first at the priority of the job that waits longest, or else the first of all. The same parameters.
OLDEST_LEVEL = _claim(f"coalesce({_first(_OF_OLDEST_LEVEL)}, {_first()})")
