"""Fair shares: where each job stands in the order of claims.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_queued = sa.text("state = 'queued'")
_zero = sa.text("0")


def upgrade() -> None:
    """Add the columns and tables, and the indexes that claims walk."""
    for name in ("virtual_start", "virtual_finish"):
        op.add_column("jobs", sa.Column(name, sa.Float(), nullable=False, server_default=_zero))
    op.add_column("jobs", sa.Column("parked", sa.Boolean(), nullable=False, server_default=sa.text("false")))
    op.create_table(
        "shares",
        sa.Column("checkpoint", sa.String(), primary_key=True),
        sa.Column("priority", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("owner", sa.String(), primary_key=True),
        sa.Column("finish", sa.Float(), nullable=False),
    )
    op.create_table(
        "clocks",
        sa.Column("checkpoint", sa.String(), primary_key=True),
        sa.Column("priority", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("virtual_now", sa.Float(), nullable=False, server_default=_zero),
    )
    op.drop_index("jobs_queued", "jobs")
    best = sa.text("priority DESC"), "virtual_start", "id"
    claimable = sa.text("state = 'queued' AND NOT parked")
    op.create_index("jobs_queued", "jobs", ["checkpoint", *best], postgresql_where=claimable)
    op.create_index("jobs_queued_by_age", "jobs", ["checkpoint", "id"], postgresql_where=_queued)
    op.create_index("jobs_queued_by_owner", "jobs", ["owner", "checkpoint", "parked", *best], postgresql_where=_queued)
    op.create_index("jobs_running_by_owner", "jobs", ["owner"], postgresql_where=sa.text("state = 'running'"))


def downgrade() -> None:
    """Take them away; jobs go by age again."""
    for name in ("jobs_running_by_owner", "jobs_queued_by_owner", "jobs_queued_by_age", "jobs_queued"):
        op.drop_index(name, "jobs")
    op.create_index("jobs_queued", "jobs", ["checkpoint", sa.text("priority DESC"), "id"], postgresql_where=_queued)
    for table in ("clocks", "shares"):
        op.drop_table(table)
    for name in ("parked", "virtual_finish", "virtual_start"):
        op.drop_column("jobs", name)
