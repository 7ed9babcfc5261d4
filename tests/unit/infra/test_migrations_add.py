"""Migrations only add: code of one release earlier runs on the schema, so that old and new processes may work side by side.

What a migration does is read from the SQL that it makes, statement by statement. With its own tables it may do as it likes.
"""

import io
import re
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from alembic import op
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import Script, ScriptDirectory

from shared import migrations

NAME = r'"?(\w+)"?'
# What old code may stumble over: what it reads is gone or called otherwise, what it writes is refused.
FORBIDDEN = {
    "drops a table": rf"DROP TABLE (?:IF EXISTS )?{NAME}",
    "drops a column": rf"ALTER TABLE {NAME} DROP COLUMN",
    "renames": rf"ALTER TABLE {NAME} RENAME",
    "changes a type": rf"ALTER TABLE {NAME} ALTER COLUMN \w+ (?:SET DATA )?TYPE",
    "forbids null": rf"ALTER TABLE {NAME} ALTER COLUMN \w+ SET NOT NULL",
    "takes a default away": rf"ALTER TABLE {NAME} ALTER COLUMN \w+ DROP DEFAULT",
    "adds a column that must be given": rf"ALTER TABLE {NAME} ADD COLUMN (?!.*\bDEFAULT\b).*NOT NULL",
    "adds a constraint": rf"ALTER TABLE {NAME} ADD CONSTRAINT",
    "forbids doubles": rf"CREATE UNIQUE INDEX \w+ ON {NAME}",
}


def revisions() -> list[Script]:
    found = ScriptDirectory.from_config(migrations.config()).walk_revisions()
    return sorted(found, key=lambda one: one.revision)


def sql(upgrade: Callable[[], None]) -> Iterator[str]:
    """Yield the statements of a migration, each on one line."""
    written = io.StringIO()
    context = MigrationContext.configure(
        dialect_name="postgresql", opts={"as_sql": True, "output_buffer": written, "literal_binds": True}
    )
    with Operations.context(context):
        upgrade()
    for statement in written.getvalue().split(";"):
        yield " ".join(statement.split())


def offences(upgrade: Callable[[], None]) -> set[str]:
    statements = list(sql(upgrade))
    own = {made[1] for one in statements if (made := re.match(rf"CREATE TABLE {NAME}", one))}
    return {
        what
        for what, pattern in FORBIDDEN.items()
        for one in statements
        if (found := re.match(pattern, one)) and found[1] not in own
    }


@pytest.mark.parametrize("script", revisions(), ids=lambda one: str(one.revision))
def test_a_migration_only_adds(script: Script) -> None:
    assert offences(script.module.upgrade) == set(), (
        f"{script.path}: do it one release later, when no code uses the old any more"
    )


@pytest.mark.parametrize(
    ("what", "act"),
    [
        ("drops a table", lambda: op.drop_table("jobs")),
        ("drops a column", lambda: op.drop_column("jobs", "state")),
        ("renames", lambda: op.alter_column("jobs", "state", new_column_name="phase")),
        ("renames", lambda: op.rename_table("jobs", "orders")),
        ("changes a type", lambda: op.alter_column("jobs", "version", type_=sa.Integer())),
        ("forbids null", lambda: op.alter_column("jobs", "worker_id", nullable=False)),
        ("takes a default away", lambda: op.alter_column("jobs", "state", server_default=None)),
        (
            "adds a column that must be given",
            lambda: op.add_column("jobs", sa.Column("mood", sa.String(), nullable=False)),
        ),
        ("adds a constraint", lambda: op.create_check_constraint("few", "jobs", "attempt < 3")),
        ("forbids doubles", lambda: op.create_index("one", "jobs", ["owner"], unique=True)),
        ("drops a column", lambda: op.execute("ALTER TABLE jobs DROP COLUMN state")),
    ],
)
def test_what_old_code_would_stumble_over_is_found(what: str, act: Callable[[], None]) -> None:
    assert offences(act) == {what}


def test_what_old_code_does_not_notice_is_allowed() -> None:
    def adds() -> None:
        op.create_table("moods", sa.Column("id", sa.Integer(), primary_key=True), sa.Column("word", sa.String()))
        op.create_index("one", "moods", ["word"], unique=True)
        op.alter_column("moods", "word", nullable=False)
        op.add_column("jobs", sa.Column("mood", sa.Integer()))
        op.add_column("jobs", sa.Column("bright", sa.Boolean(), nullable=False, server_default=sa.text("false")))
        op.create_index("by_mood", "jobs", ["mood"])
        op.alter_column("jobs", "worker_id", nullable=True)

    assert offences(adds) == set()
