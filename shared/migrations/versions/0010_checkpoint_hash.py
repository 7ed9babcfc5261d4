"""The hash of each checkpoint's weights.

Revision ID: 0010
Revises: 0009
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add the column; workers fill it when they start."""
    op.add_column("checkpoints", sa.Column("sha256", sa.String()))


def downgrade() -> None:
    """Forget the hashes."""
    op.drop_column("checkpoints", "sha256")
