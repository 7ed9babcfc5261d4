"""Alembic migrations of the database. `python -m shared.migrations` upgrades it."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from shared.infra.db import normalized_url


def config(database_url: str) -> Config:
    """Return the alembic configuration for one database, without an ini file."""
    configuration = Config()
    configuration.set_main_option("script_location", str(Path(__file__).parent))
    # A percent sign in a password would otherwise be read as interpolation.
    configuration.set_main_option("sqlalchemy.url", normalized_url(database_url).replace("%", "%%"))
    return configuration


def upgrade(database_url: str, revision: str = "head") -> None:
    """Upgrade the schema to `revision`; several processes may run it at once.

    A schema newer than this code stays as it is: migrations only add, so code one release behind runs on it.
    """
    if not is_newer(current(database_url)):
        command.upgrade(config(database_url), revision)


def current(database_url: str) -> str | None:
    """Return the revision of a database; None for an empty one."""
    engine = create_engine(normalized_url(database_url))
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()


def is_newer(revision: str | None) -> bool:
    """Whether this code does not know a revision, so a newer release must have made it."""
    return revision is not None and revision not in {one.revision for one in _scripts().walk_revisions()}


def head() -> str | None:
    """Return the newest revision that this code knows."""
    return _scripts().get_current_head()


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(config("postgresql://"))
