"""The claim of deliveries: one SQL statement, a worked example and its query plan.

The statement steps from endpoint to endpoint that has something pending, leaves out those that are paused, gone or on hold, takes
the oldest due deliveries of each, and then at most `per_lane` of a lane: all endpoints of one owner and origin. What the courier
sends at the moment (`busy`) counts as taken. Concurrent claims skip rows that another one has locked.

Example, with per_lane = 2, limit = 10, ailing = false and busy = {"ada https://a.example": 1}; it is 12:00:

    endpoint  lane                   state                   pending deliveries, due at
    E1        ada https://a.example  active                  D1 11:57, D2 11:58, D3 11:59
    E2        ada https://a.example  active                  D4 11:56
    E3        bob https://b.example  active                  D5 11:59, D6 12:05
    E4        bob https://c.example  active, held to 12:30   D7 11:50
    E5        bob https://d.example  active, failing         D8 11:50

    taken     D4: the oldest of Ada's lane, which has one place left
              D5: D6 is not due
    left      D7, on hold; D8, for the claim with ailing = true

D4 and D5 have a new attempt, and a lease until now + `lease`: no other courier takes them before, unless they are settled.
`test_the_worked_example_of_a_claim` plays it on Postgres.

The plan, which `test_a_claim_steps_over_the_index` and `test_a_claim_reads_a_few_of_each_crowd` hold:

    CTE      index                   rows
    waiting  deliveries_due          1 per endpoint, however many wait for it (a loose index scan)
    willing  webhook_endpoints_pkey  1 per endpoint; or the table as a whole, while it is small
    due      deliveries_due          per endpoint those leased now, and the next 32 (an incremental sort's least group)
    update   deliveries_pkey         1 per delivery taken

So a thousand messages for one endpoint cost a claim no more than a few do.
"""

from sqlalchemy import text

# Parameters: now (timestamptz), lease (interval), ailing, per_lane, limit, busy (a JSON object of deliveries under way by lane).
CLAIM = text("""
WITH RECURSIVE waiting AS (
    (SELECT endpoint_id FROM deliveries WHERE state = 'pending' ORDER BY endpoint_id LIMIT 1)
    UNION ALL
    SELECT (SELECT d.endpoint_id FROM deliveries d
            WHERE d.state = 'pending' AND d.endpoint_id > w.endpoint_id ORDER BY d.endpoint_id LIMIT 1)
    FROM waiting w WHERE w.endpoint_id IS NOT NULL
), willing AS (
    SELECT e.id, e.owner || ' ' || e.origin AS lane
    FROM waiting w JOIN webhook_endpoints e ON e.id = w.endpoint_id
    WHERE e.state IN ('active', 'suspended')
      AND (e.failing_since IS NOT NULL) = :ailing
      AND (e.hold_until IS NULL OR e.hold_until <= CAST(:now AS timestamptz))
    ORDER BY random()
), due AS (
    SELECT d.id, row_number() OVER (PARTITION BY willing.lane ORDER BY d.next_at, d.id) AS place, willing.lane
    FROM willing CROSS JOIN LATERAL (
        SELECT id, next_at FROM deliveries
        WHERE endpoint_id = willing.id AND state = 'pending' AND next_at <= CAST(:now AS timestamptz)
          AND (leased_until IS NULL OR leased_until <= CAST(:now AS timestamptz))
        ORDER BY next_at, id LIMIT :per_lane FOR UPDATE SKIP LOCKED
    ) d
), chosen AS (
    SELECT id, lane FROM due
    WHERE place <= :per_lane - COALESCE(CAST(CAST(:busy AS jsonb) ->> lane AS int), 0) LIMIT :limit
)
UPDATE deliveries d
SET attempt = d.attempt + 1, leased_until = CAST(:now AS timestamptz) + :lease
FROM chosen WHERE d.id = chosen.id
RETURNING d.id, chosen.lane
""")
