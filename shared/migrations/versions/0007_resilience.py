"""Retries that wait, jobs that expire, attempts with a deadline, suspects, and workers that are asked to leave.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_time = sa.DateTime(timezone=True)
_INDEXES: dict[str, tuple[list[str | sa.TextClause], str]] = {
    "jobs_expiring": (["expires_at"], "state = 'queued' AND expires_at IS NOT NULL"),
    "jobs_by_error": (["error_code", sa.text("id DESC")], "error_code IS NOT NULL"),
    "jobs_retries": (["retry_of"], "retry_of IS NOT NULL"),
    "jobs_finished": (["finished_at"], "finished_at IS NOT NULL"),
}


def upgrade() -> None:
    """Add the columns and what finds the rows by them."""
    op.add_column("jobs", sa.Column("suspect", sa.Boolean(), nullable=False, server_default=sa.text("false")))
    op.add_column("jobs", sa.Column("not_before", _time))
    op.add_column("jobs", sa.Column("expires_at", _time))
    op.add_column("jobs", sa.Column("timeout_s", sa.Float()))
    op.add_column("jobs", sa.Column("retry_of", sa.Uuid()))
    op.add_column("workers", sa.Column("draining_at", _time))
    for name, (columns, where) in _INDEXES.items():
        op.create_index(name, "jobs", columns, postgresql_where=sa.text(where))


def downgrade() -> None:
    """Take them away."""
    for name in _INDEXES:
        op.drop_index(name, "jobs")
    op.drop_column("workers", "draining_at")
    for name in ("retry_of", "timeout_s", "expires_at", "not_before", "suspect"):
        op.drop_column("jobs", name)
