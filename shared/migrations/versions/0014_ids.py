"""Ids of clients' own: what a job under one came from, and listings by time instead of by id.

Revision ID: 0014
Revises: 0013
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

NEWEST = (sa.text("created_at DESC"), sa.text("id DESC"))
QUEUED = sa.text("state = 'queued'")
FAILED = sa.text("error_code IS NOT NULL")


def upgrade() -> None:
    """Add the column, and put the listings' indexes in order of time."""
    op.add_column("jobs", sa.Column("digest", sa.String()))
    op.create_index("jobs_by_age", "jobs", [*NEWEST])
    op.create_index("jobs_by_owner", "jobs", ["owner", *NEWEST])
    _replace("jobs_by_state", ["state", *NEWEST])
    _replace("jobs_by_checkpoint", ["checkpoint", *NEWEST])
    _replace("jobs_by_error", ["error_code", *NEWEST], where=FAILED)
    _replace("jobs_queued_by_age", ["checkpoint", "created_at", "id"], where=QUEUED)


def downgrade() -> None:
    """Put the indexes in order of ids again."""
    newest = sa.text("id DESC")
    _replace("jobs_queued_by_age", ["checkpoint", "id"], where=QUEUED)
    _replace("jobs_by_error", ["error_code", newest], where=FAILED)
    _replace("jobs_by_checkpoint", ["checkpoint", newest])
    _replace("jobs_by_state", ["state", newest])
    op.drop_index("jobs_by_owner", table_name="jobs")
    op.drop_index("jobs_by_age", table_name="jobs")
    op.drop_column("jobs", "digest")


def _replace(name: str, columns: list[sa.TextClause | str], *, where: sa.TextClause | None = None) -> None:
    op.drop_index(name, table_name="jobs")
    op.create_index(name, "jobs", columns, postgresql_where=where)
