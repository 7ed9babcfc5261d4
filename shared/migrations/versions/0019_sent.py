"""Digests of bodies as they were sent, beside those of what one release read in them.

Revision ID: 0019
Revises: 0018
"""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"

TABLES = ("jobs", "promises")


def upgrade() -> None:
    """Add the columns; what came before, and what earlier code writes, has none."""
    for table in TABLES:
        op.add_column(table, sa.Column("sent_digest", sa.String()))


def downgrade() -> None:
    """Forget the digests; those that earlier code compares stay."""
    for table in TABLES:
        op.drop_column(table, "sent_digest")
