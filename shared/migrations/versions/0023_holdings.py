"""Libraries of workers: which checkpoints each can load, from how near; which one it turns to; how much each is wanted.

Revision ID: 0023
Revises: 0022
"""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    """Add the table and the columns. A worker of the release before holds the one checkpoint that it serves."""
    op.add_column("workers", sa.Column("intends", sa.String()))
    op.add_column("workers", sa.Column("keeps", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("workers", sa.Column("swaps", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("checkpoints", sa.Column("demand", sa.Float(), nullable=False, server_default="0"))
    op.create_table(
        "holdings",
        sa.Column("worker_id", sa.String(), sa.ForeignKey("workers.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("checkpoint", sa.String(), sa.ForeignKey("checkpoints.name"), primary_key=True),
        sa.Column("tier", sa.String(), nullable=False),
        sa.Column("price_s", sa.Float(), nullable=False),
        sa.Column("refused", sa.String()),
    )
    op.create_index("ix_holdings_checkpoint", "holdings", ["checkpoint"])


def downgrade() -> None:
    """Forget what workers can load beside the checkpoint that they serve."""
    op.drop_table("holdings")
    op.drop_column("checkpoints", "demand")
    for column in ("swaps", "keeps", "intends"):
        op.drop_column("workers", column)
