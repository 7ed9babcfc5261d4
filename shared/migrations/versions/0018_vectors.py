"""How many tokens each embedding takes, so that prompts can be counted without its file.

Revision ID: 0018
Revises: 0017
"""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    """Add the column; workers fill it when they next look through their folders."""
    op.add_column("weights", sa.Column("vectors", sa.Integer()))


def downgrade() -> None:
    """Forget the lengths."""
    op.drop_column("weights", "vectors")
