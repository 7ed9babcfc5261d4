"""LoRAs, embeddings and VAEs of the fleet; images that a safety checker blacked out.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_time = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add the table and the column."""
    op.create_table(
        "weights",
        sa.Column("kind", sa.String(), primary_key=True),
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("alias", sa.String()),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", _time, nullable=False, server_default=sa.text("now()")),
    )
    op.add_column("images", sa.Column("flagged", sa.Boolean(), nullable=False, server_default=sa.text("false")))


def downgrade() -> None:
    """Take both away."""
    op.drop_column("images", "flagged")
    op.drop_table("weights")
