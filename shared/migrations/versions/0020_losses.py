"""How many workers were lost while they ran a job: one loss is the machine's, more make a suspect.

Revision ID: 0020
Revises: 0019
"""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    """Add the count. It begins at zero: that a suspect of earlier code has lost one worker is no suspicion any more."""
    op.add_column("jobs", sa.Column("losses", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    """Forget the count; `suspect` stays, and earlier code runs those jobs alone."""
    op.drop_column("jobs", "losses")
