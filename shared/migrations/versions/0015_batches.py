"""Jobs that were submitted together.

Revision ID: 0015
Revises: 0014
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Create the table, and say of each job which batch it belongs to."""
    op.create_table(
        "batches",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("name", sa.String()),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("unfinished", sa.Integer(), nullable=False),
        sa.Column("axes", JSONB(), nullable=False),
        sa.Column("endpoint_id", sa.Uuid()),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
    )
    op.create_index("batches_of_owner", "batches", ["owner", sa.text("id DESC")])
    op.add_column("jobs", sa.Column("batch_id", sa.Uuid()))
    op.add_column("jobs", sa.Column("batch_index", sa.Integer()))
    op.create_index(
        "jobs_of_batch", "jobs", ["batch_id", "batch_index"], postgresql_where=sa.text("batch_id IS NOT NULL")
    )


def downgrade() -> None:
    """Let each job stand alone."""
    op.drop_index("jobs_of_batch", table_name="jobs")
    op.drop_column("jobs", "batch_index")
    op.drop_column("jobs", "batch_id")
    op.drop_table("batches")
