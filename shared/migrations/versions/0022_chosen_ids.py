"""Ids that clients chose although another owner's job has them: such a job is stored under one of its own.

Revision ID: 0022
Revises: 0021
"""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"


def upgrade() -> None:
    """Add the column; jobs that are there have the ids that they show."""
    op.add_column("jobs", sa.Column("chosen_id", sa.Uuid()))


def downgrade() -> None:
    """Show such jobs under the ids that they are stored by."""
    op.drop_column("jobs", "chosen_id")
