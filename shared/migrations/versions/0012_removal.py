"""Jobs that were removed, by their ids, and which of those that ended left no litter in the storage.

Revision ID: 0012
Revises: 0011
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add the table, the column and its index."""
    op.create_table(
        "removed_jobs",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("removed_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )
    op.add_column("jobs", sa.Column("is_swept", sa.Boolean(), nullable=False, server_default=sa.text("false")))
    op.create_index(
        "jobs_litter",
        "jobs",
        ["finished_at"],
        postgresql_where=sa.text(
            "finished_at IS NOT NULL AND NOT is_swept AND attempt > 0 AND (attempt > 1 OR state <> 'succeeded')"
        ),
    )


def downgrade() -> None:
    """Forget what was removed."""
    op.drop_index("jobs_litter", table_name="jobs")
    op.drop_column("jobs", "is_swept")
    op.drop_table("removed_jobs")
