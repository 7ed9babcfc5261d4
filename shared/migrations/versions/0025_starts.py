"""The first job of a priority at any checkpoint, which its clock waits for.

Revision ID: 0025
Revises: 0024
"""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"


def upgrade() -> None:
    """Add the index. Claims of the release before move the clock past that job, which costs who comes next a wait."""
    claimable = sa.text("state = 'queued' AND NOT parked")
    op.create_index("jobs_queued_by_start", "jobs", ["priority", "virtual_start"], postgresql_where=claimable)


def downgrade() -> None:
    """Take it away."""
    op.drop_index("jobs_queued_by_start", "jobs")
