"""What a job costs and how fast a worker is, for forecasts.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_PACE = ("speed", "tick_s", "batch_fill")


def upgrade() -> None:
    """Add the columns."""
    op.add_column("jobs", sa.Column("cost", sa.BigInteger(), nullable=False, server_default="0"))
    for name in _PACE:
        op.add_column("workers", sa.Column(name, sa.Float()))


def downgrade() -> None:
    """Take them away."""
    for name in _PACE:
        op.drop_column("workers", name)
    op.drop_column("jobs", "cost")
