"""Jobs, their images, and the fleet that renders them.

Revision ID: 0001
Revises: nothing
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

_now = sa.text("now()")
_time = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the four tables."""
    op.create_table(
        "jobs",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("owner", sa.String(), nullable=False, server_default="anonymous"),
        sa.Column("state", sa.String(), nullable=False, server_default="queued"),
        sa.Column("version", sa.BigInteger(), nullable=False, server_default="1"),
        sa.Column("checkpoint", sa.String(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("params", postgresql.JSONB(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("faults", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("worker_id", sa.String()),
        sa.Column("lease_until", _time),
        sa.Column("steps_done", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("steps_total", sa.Integer(), nullable=False),
        sa.Column("error_code", sa.String()),
        sa.Column("error_message", sa.String()),
        sa.Column("error_retryable", sa.Boolean()),
        sa.Column("created_at", _time, nullable=False, server_default=_now),
        sa.Column("started_at", _time),
        sa.Column("finished_at", _time),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'succeeded', 'failed', 'canceled', 'expired')", name="jobs_state_known"
        ),
    )
    op.create_index(
        "jobs_queued",
        "jobs",
        ["checkpoint", sa.text("priority DESC"), "id"],
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_index("jobs_running", "jobs", ["lease_until"], postgresql_where=sa.text("state = 'running'"))
    op.create_index("jobs_by_state", "jobs", ["state", sa.text("id DESC")])
    op.create_index("jobs_by_checkpoint", "jobs", ["checkpoint", sa.text("id DESC")])
    op.create_table(
        "images",
        sa.Column("job_id", sa.Uuid(), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("index", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("content_type", sa.String(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
    )
    op.create_table(
        "checkpoints",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("announced_at", _time, nullable=False, server_default=_now),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("checkpoint", sa.String(), sa.ForeignKey("checkpoints.name"), nullable=False, index=True),
        sa.Column("hostname", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("started_at", _time, nullable=False, server_default=_now),
        sa.Column("seen_at", _time, nullable=False, server_default=_now),
    )


def downgrade() -> None:
    """Drop everything, jobs and all."""
    for table in ("workers", "checkpoints", "images", "jobs"):
        op.drop_table(table)
