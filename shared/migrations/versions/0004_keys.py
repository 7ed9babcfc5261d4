"""API keys with their limits.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_time = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "keys",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("prefix", sa.String(), nullable=False, unique=True),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("scopes", sa.ARRAY(sa.String()), nullable=False),
        sa.Column("weight", sa.Float(), nullable=False, server_default="1"),
        sa.Column("max_priority", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("requests_per_minute", sa.Integer()),
        sa.Column("max_queued", sa.Integer()),
        sa.Column("max_running", sa.Integer()),
        sa.Column("paused", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        sa.Column("created_at", _time, nullable=False, server_default=sa.text("now()")),
        sa.Column("expires_at", _time),
        sa.Column("revoked_at", _time),
        sa.Column("last_used_at", _time),
    )


def downgrade() -> None:
    """Drop it, and with it every key."""
    op.drop_table("keys")
