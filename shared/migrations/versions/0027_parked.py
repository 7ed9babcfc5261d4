"""Whose jobs are parked, and where, without walking all that is queued.

Revision ID: 0027
Revises: 0026
"""

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"


def upgrade() -> None:
    """Add the index, which is empty unless keys have limits."""
    parked = sa.text("state = 'queued' AND parked")
    op.create_index("jobs_parked", "jobs", ["owner", "checkpoint"], postgresql_where=parked)


def downgrade() -> None:
    """Take it away."""
    op.drop_index("jobs_parked", "jobs")
