"""What clients have chosen for their sessions, and the calls they wait for.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0008"
down_revision = "0007"

_time = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("options", JSONB(), nullable=False),
        sa.Column("changed_at", _time, nullable=False, server_default=sa.text("now()")),
    )
    op.create_table(
        "calls",
        sa.Column("session_id", sa.String(), primary_key=True),
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("job_ids", sa.ARRAY(sa.Uuid()), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("about", JSONB(), nullable=False),
        sa.Column("created_at", _time, nullable=False, server_default=sa.text("now()")),
    )
    op.create_index("calls_by_age", "calls", ["session_id", "created_at"])


def downgrade() -> None:
    """Drop them; the jobs stay."""
    op.drop_table("calls")
    op.drop_table("sessions")
