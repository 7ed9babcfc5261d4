"""Where a job that was interrupted can go on, and where its last attempt did.

Revision ID: 0011
Revises: 0010
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Add the columns."""
    op.add_column("jobs", sa.Column("snapshot_attempt", sa.Integer()))
    op.add_column("jobs", sa.Column("resumed_from_step", sa.Integer(), nullable=False, server_default="0"))
    op.create_index("jobs_snapshots", "jobs", ["id"], postgresql_where=sa.text("snapshot_attempt IS NOT NULL"))


def downgrade() -> None:
    """Forget them: interrupted jobs start over."""
    op.drop_index("jobs_snapshots", table_name="jobs")
    op.drop_column("jobs", "resumed_from_step")
    op.drop_column("jobs", "snapshot_attempt")
