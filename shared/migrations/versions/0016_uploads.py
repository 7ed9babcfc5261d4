"""Pictures that clients bring by themselves.

Revision ID: 0016
Revises: 0015
"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "uploads",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )
    op.create_index("uploads_by_age", "uploads", ["created_at"])
    op.create_index("uploads_of_owner", "uploads", ["owner"])


def downgrade() -> None:
    """Forget them; their files stay until someone deletes what is under uploads/."""
    op.drop_table("uploads")
