"""What workers show when they examine themselves, why one left, and how its GPU is.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Create the table and add the columns."""
    op.create_table(
        "canaries",
        sa.Column("key", sa.String(), primary_key=True),
        sa.Column("worker_id", sa.String(), primary_key=True),
        sa.Column("weights", sa.String(), nullable=False),
        sa.Column("picture", sa.LargeBinary(), nullable=False),
        sa.Column("shown_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()")),
    )
    op.add_column("workers", sa.Column("unfit", sa.String()))
    op.add_column("workers", sa.Column("temperature_c", sa.Float()))
    op.add_column("workers", sa.Column("ecc_errors", sa.Integer()))
    op.add_column("workers", sa.Column("xid", sa.Integer()))


def downgrade() -> None:
    """Forget them."""
    for name in ("unfit", "temperature_c", "ecc_errors", "xid"):
        op.drop_column("workers", name)
    op.drop_table("canaries")
