"""Receivers of webhooks that have proven themselves, and what couriers and submits find an owner's receivers by.

Revision ID: 0021
Revises: 0020
"""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"

_INDEXES = (
    ("deliveries_waiting", "deliveries", ["owner", "endpoint_id", "next_at", "id"], "state = 'pending'"),
    ("jobs_naming", "jobs", ["owner", "endpoint_id"], "endpoint_id IS NOT NULL AND state IN ('queued', 'running')"),
    ("batches_naming", "batches", ["owner", "endpoint_id"], "endpoint_id IS NOT NULL AND finished_at IS NULL"),
    ("webhook_endpoints_named", "webhook_endpoints", ["owner", "used_at"], "NOT registered"),
    ("webhook_endpoints_proven", "webhook_endpoints", ["owner", "origin"], "proven_at IS NOT NULL"),
)


def upgrade() -> None:
    """Add the column, fill it for whoever has taken a delivery that is still known, and add the indexes."""
    op.add_column("webhook_endpoints", sa.Column("proven_at", sa.DateTime(timezone=True)))
    op.execute(
        "UPDATE webhook_endpoints SET proven_at = now()"
        " WHERE id IN (SELECT endpoint_id FROM deliveries WHERE state = 'delivered')"
    )
    for name, table, columns, where in _INDEXES:
        op.create_index(name, table, columns, postgresql_where=sa.text(where))


def downgrade() -> None:
    """Take them away."""
    for name, table, _, _ in _INDEXES:
        op.drop_index(name, table)
    op.drop_column("webhook_endpoints", "proven_at")
