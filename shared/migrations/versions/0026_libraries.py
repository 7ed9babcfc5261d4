"""A digest of what each worker can load, so that equal libraries are read once.

Revision ID: 0026
Revises: 0025
"""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"


def upgrade() -> None:
    """Add the column. A worker of the release before leaves it null, and its holdings are read each time."""
    op.add_column("workers", sa.Column("library", sa.String()))


def downgrade() -> None:
    """Forget the digests."""
    op.drop_column("workers", "library")
