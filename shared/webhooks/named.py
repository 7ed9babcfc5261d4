"""The URLs that an owner's jobs name and that are in use: bounded, for couriers step over each of them at every claim.

A URL is in use while an unfinished job or batch names it or a delivery waits for it, and for the transaction that adds it.
Whoever names a new one for each job has as many as jobs under way. Submits of the same instant do not see each other, so that the
bound may be exceeded by their number.
"""

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.errors import TooManyWebhookUrls


def _steps(name: str, table: str, condition: str) -> str:
    """Return the SQL that steps from endpoint to endpoint of an owner (a loose index scan), however many rows name each."""
    mine = f"SELECT endpoint_id FROM {table} WHERE owner = :owner AND {condition}"  # noqa: S608 - constants
    return f"""{name} AS (
        ({mine} ORDER BY endpoint_id LIMIT 1)
        UNION ALL
        SELECT ({mine} AND endpoint_id > {name}.endpoint_id ORDER BY endpoint_id LIMIT 1)
        FROM {name} WHERE endpoint_id IS NOT NULL
    )"""  # noqa: S608


# Parameter: owner.
IN_USE = text(f"""
WITH RECURSIVE
    {_steps("awaited", "deliveries", "state = 'pending'")},
    {_steps("of_jobs", "jobs", "endpoint_id IS NOT NULL AND state IN ('queued', 'running')")},
    {_steps("of_batches", "batches", "endpoint_id IS NOT NULL AND finished_at IS NULL")}
SELECT count(*) FROM webhook_endpoints
WHERE NOT registered AND id IN (
    SELECT endpoint_id FROM awaited
    UNION SELECT endpoint_id FROM of_jobs
    UNION SELECT endpoint_id FROM of_batches
    UNION SELECT id FROM webhook_endpoints WHERE owner = :owner AND NOT registered AND used_at = now()
)
""")  # noqa: S608 - constants


def make_room(session: Session, owner: str, *, most: int) -> None:
    """Check that an owner's jobs may name one more URL. Raises `TooManyWebhookUrls`."""
    if session.execute(IN_USE, {"owner": owner}).scalar_one() >= most:
        raise TooManyWebhookUrls(
            f"Your unfinished jobs and undelivered webhooks name {most} webhook URLs already. Register one endpoint for all jobs "
            "(POST /v1/webhooks/endpoints), or wait until some of them have ended."
        )
