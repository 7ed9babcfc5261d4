"""The stored pictures that jobs start from, so that those no job names any more can go.

Revision ID: 0017
Revises: 0016
"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"

FIELDS = ("init_image", "mask_image")


def upgrade() -> None:
    """Create the table and the indexes that find who names a picture; take up the pictures that jobs name today."""
    op.create_table(
        "inputs",
        sa.Column("key", sa.String(), primary_key=True),
        sa.Column("kept_until", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("inputs_by_time", "inputs", ["kept_until"])
    for field in FIELDS:
        value = f"params->>'{field}'"
        op.create_index(
            f"jobs_of_{field}", "jobs", [sa.text(f"({value})")], postgresql_where=sa.text(f"{value} IS NOT NULL")
        )
        op.execute(
            f"INSERT INTO inputs SELECT DISTINCT {value}, now() + interval '1 day' FROM jobs"  # noqa: S608 - of our own words
            f" WHERE {value} IS NOT NULL ON CONFLICT DO NOTHING"
        )


def downgrade() -> None:
    """Forget them; their objects stay until someone deletes what is under inputs/."""
    for field in FIELDS:
        op.drop_index(f"jobs_of_{field}", "jobs")
    op.drop_table("inputs")
