"""Fair shares over all checkpoints: a clock for each priority, and what each owner has had there. When demand was measured.

Revision ID: 0024
Revises: 0023
"""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"


def upgrade() -> None:
    """Add the tables, and fill them from those of each checkpoint.

    The farm's clock is the fastest checkpoint's; an owner is as far ahead of it as it is over all checkpoints together. A process
    of the release before goes on with `clocks` and `shares` alone, which this release keeps, too: what it submits is in order
    within its checkpoint but charged to nobody elsewhere, and what it claims moves the clock of its checkpoint only.
    """
    op.create_table(
        "priority_clocks",
        sa.Column("priority", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("virtual_now", sa.Float(), nullable=False, server_default=sa.text("0")),
    )
    op.create_table(
        "owner_shares",
        sa.Column("priority", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("owner", sa.String(), primary_key=True),
        sa.Column("finish", sa.Float(), nullable=False),
    )
    op.execute("INSERT INTO priority_clocks SELECT priority, max(virtual_now) FROM clocks GROUP BY priority")
    op.execute("""
        INSERT INTO owner_shares
        SELECT priority, owner, farm.virtual_now + sum(greatest(finish - clocks.virtual_now, 0))
        FROM shares JOIN clocks USING (checkpoint, priority) JOIN priority_clocks AS farm USING (priority)
        GROUP BY priority, owner, farm.virtual_now
    """)
    op.add_column("checkpoints", sa.Column("measured_at", sa.DateTime(timezone=True)))


def downgrade() -> None:
    """Forget what owners have had over all checkpoints."""
    op.drop_column("checkpoints", "measured_at")
    for table in ("owner_shares", "priority_clocks"):
        op.drop_table(table)
