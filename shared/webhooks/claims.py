"""The claim of deliveries: one SQL statement, a worked example and its query plan.

The statement steps from endpoint to endpoint that has something pending, past owners whose share is taken, and leaves out those
that are paused, gone or on hold. Of each it looks at the oldest due deliveries. A lane, which is all endpoints of one owner and
origin, gets at most `per_lane` places and an owner at most `per_owner`; an owner's first place comes before a second one of any.
What the courier sends at the moment, by lane (`busy`) and by owner (`held`), counts as taken. Concurrent claims skip rows that
another one has locked.

Receivers are of two kinds, each with a claim of its own: sound, or `ailing`: the last delivery failed, or nobody of the lane has
ever taken one.

Example, with per_lane = 2, per_owner = 2, limit = 10, ailing = false, busy = {"ada https://a.example": 1} and held = {"ada": 1};
it is 12:00:

    endpoint  lane                   state                   pending deliveries, due at
    E1        ada https://a.example  active                  D1 11:57, D2 11:58, D3 11:59
    E2        ada https://a.example  active                  D4 11:56
    E3        bob https://b.example  active                  D5 11:58, D6 11:59, D7 12:05
    E4        bob https://c.example  active, held to 12:30   D8 11:50
    E5        bob https://d.example  active, failing         D9 11:50
    E6        eve https://e.example  active, never answered  D10 11:50

    taken     D4: the oldest of Ada's lane, which has one place left
              D5, D6: D7 is not due
    left      D8, on hold; D9 and D10, for the claim with ailing = true

Those taken have a new attempt, and a lease until now + `lease`: no other courier takes them before, unless they are settled.
`test_the_worked_example_of_a_claim` plays it on Postgres.

The plan, which `test_a_claim_steps_over_the_index` and `test_a_claim_reads_a_few_of_each_crowd` hold:

    CTE      index                     rows
    waiting  deliveries_waiting        1 per endpoint, however many wait for it (a loose index scan); 1 per owner without a place
    willing  webhook_endpoints_pkey    1 per endpoint; or the table as a whole, while it is small
             webhook_endpoints_proven  1 per endpoint that is not failing
    due      deliveries_waiting        per endpoint those leased now, and the next `per_lane`
    taken    deliveries_waiting        the same, of the endpoints chosen; only these rows are locked
    update   deliveries_pkey           1 per delivery taken

So a thousand messages for one endpoint cost a claim no more than a few do.
"""

from sqlalchemy import text

# Of an endpoint's deliveries.
_IS_DUE = """
    state = 'pending' AND next_at <= CAST(:now AS timestamptz)
    AND (leased_until IS NULL OR leased_until <= CAST(:now AS timestamptz))
"""

# Parameters: now (timestamptz), lease (interval), ailing, per_lane, per_owner, limit; busy and held (JSON objects of the numbers
# of deliveries under way by lane and by owner).
CLAIM = text(f"""
WITH RECURSIVE waiting AS (
    (SELECT owner, endpoint_id FROM deliveries WHERE state = 'pending' ORDER BY owner, endpoint_id LIMIT 1)
    UNION ALL
    SELECT next.owner, next.endpoint_id
    FROM waiting w CROSS JOIN LATERAL (
        SELECT owner, endpoint_id FROM deliveries
        WHERE state = 'pending' AND (owner, endpoint_id) > (w.owner, CASE
            WHEN COALESCE(CAST(CAST(:held AS jsonb) ->> w.owner AS int), 0) < :per_owner THEN w.endpoint_id
            ELSE CAST('ffffffff-ffff-ffff-ffff-ffffffffffff' AS uuid)
        END)
        ORDER BY owner, endpoint_id LIMIT 1
    ) next
), willing AS (
    SELECT e.id, w.owner, w.owner || ' ' || e.origin AS lane
    FROM waiting w JOIN webhook_endpoints e ON e.id = w.endpoint_id
    WHERE e.state IN ('active', 'suspended')
      AND (e.hold_until IS NULL OR e.hold_until <= CAST(:now AS timestamptz))
      AND :ailing = (e.failing_since IS NOT NULL OR NOT EXISTS (
          SELECT FROM webhook_endpoints p
          WHERE p.owner = e.owner AND p.origin = e.origin AND p.proven_at IS NOT NULL
      ))
), due AS (
    SELECT willing.*, COALESCE(CAST(CAST(:busy AS jsonb) ->> lane AS int), 0)
        + row_number() OVER (PARTITION BY lane ORDER BY d.next_at, d.id) AS place_in_lane
    FROM willing CROSS JOIN LATERAL (
        SELECT id, next_at FROM deliveries
        WHERE owner = willing.owner AND endpoint_id = willing.id AND {_IS_DUE}
        ORDER BY next_at, id LIMIT :per_lane
    ) d
), fitting AS (
    SELECT id, owner, lane, COALESCE(CAST(CAST(:held AS jsonb) ->> owner AS int), 0)
        + row_number() OVER (PARTITION BY owner ORDER BY place_in_lane, random()) AS place_of_owner
    FROM due WHERE place_in_lane <= :per_lane
), chosen AS (
    SELECT id, owner, lane, count(*) AS places
    FROM (SELECT * FROM fitting WHERE place_of_owner <= :per_owner ORDER BY place_of_owner, random() LIMIT :limit) first
    GROUP BY id, owner, lane
), taken AS (
    SELECT d.id, chosen.lane
    FROM chosen CROSS JOIN LATERAL (
        SELECT id FROM deliveries
        WHERE owner = chosen.owner AND endpoint_id = chosen.id AND {_IS_DUE}
        ORDER BY next_at, id LIMIT chosen.places FOR UPDATE SKIP LOCKED
    ) d
)
UPDATE deliveries d
SET attempt = d.attempt + 1, leased_until = CAST(:now AS timestamptz) + :lease
FROM taken WHERE d.id = taken.id
RETURNING d.id, taken.lane
""")  # noqa: S608 - constants
