"""Events of jobs, the receivers of webhooks and what is on its way to them.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"

_now = sa.text("now()")
_time = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add the four tables, and the receiver that a job may name."""
    op.add_column("jobs", sa.Column("endpoint_id", sa.Uuid()))
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("origin", sa.String(), nullable=False),
        sa.Column("events", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("registered", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(), nullable=False, server_default="active"),
        sa.Column("secret", sa.String()),
        sa.Column("old_secret", sa.String()),
        sa.Column("old_secret_until", _time),
        sa.Column("failing_since", _time),
        sa.Column("hold_until", _time),
        sa.Column("created_at", _time, nullable=False, server_default=_now),
        sa.Column("used_at", _time, nullable=False, server_default=_now),
    )
    op.create_index(
        "webhook_endpoints_registered", "webhook_endpoints", ["owner"], postgresql_where=sa.text("registered")
    )
    op.create_table(
        "webhook_secrets",
        sa.Column("owner", sa.String(), primary_key=True),
        sa.Column("secret", sa.String(), nullable=False),
        sa.Column("old_secret", sa.String()),
        sa.Column("old_secret_until", _time),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger(), primary_key=True),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("at", _time, nullable=False, server_default=_now),
        sa.Column(
            "txid", sa.BigInteger(), nullable=False, server_default=sa.text("pg_current_xact_id()::text::bigint")
        ),
        sa.Column("body", sa.String()),
    )
    op.create_index("events_of_job", "events", ["job_id", "version"], unique=True)
    op.create_index("events_of_owner", "events", ["owner", "txid", "id"])
    op.create_index("events_in_order", "events", ["txid", "id"])
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("event_id", sa.BigInteger(), sa.ForeignKey("events.id", ondelete="CASCADE"), nullable=False),
        sa.Column("endpoint_id", sa.Uuid(), sa.ForeignKey("webhook_endpoints.id", ondelete="CASCADE"), nullable=False),
        sa.Column("state", sa.String(), nullable=False, server_default="pending"),
        sa.Column("attempt", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("tries", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("next_at", _time, nullable=False, server_default=_now),
        sa.Column("leased_until", _time),
        sa.Column("log", postgresql.JSONB(), nullable=False, server_default=sa.text("'[]'::jsonb")),
        sa.Column("created_at", _time, nullable=False, server_default=_now),
        sa.Column("finished_at", _time),
    )
    op.create_index(
        "deliveries_due", "deliveries", ["endpoint_id", "next_at"], postgresql_where=sa.text("state = 'pending'")
    )
    op.create_index("deliveries_of_owner", "deliveries", ["owner", sa.text("id DESC")])
    op.create_index("deliveries_of_job", "deliveries", ["job_id"])
    op.create_index("deliveries_of_event", "deliveries", ["event_id", "endpoint_id"], unique=True)


def downgrade() -> None:
    """Take them away, undelivered webhooks too."""
    for table in ("deliveries", "events", "webhook_secrets", "webhook_endpoints"):
        op.drop_table(table)
    op.drop_column("jobs", "endpoint_id")
