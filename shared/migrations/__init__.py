"""Alembic migrations of the database. `python -m shared.migrations` upgrades it."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic import SecretStr
from sqlalchemy import Connection, func, select
from sqlalchemy.exc import SQLAlchemyError

from shared.errors import DatabaseUnfit, FarmError
from shared.infra.db import Database
from shared.settings import Settings

# What goes wrong with a migration.
ERRORS = (FarmError, SQLAlchemyError)
# An index on a table of many millions of rows takes minutes.
PATIENCE_S = 3600.0
_CONNECT_S = 10.0
# Any constant that no other advisory lock of the farm uses; two migrators started together then run one after the other.
_LOCK = 0x6661726D


def config(connection: Connection | None = None) -> Config:
    """Return the alembic configuration, without an ini file, for what runs on a connection."""
    configuration = Config(attributes={"connection": connection})
    configuration.set_main_option("script_location", str(Path(__file__).parent))
    return configuration


def upgrade(database_url: str, revision: str = "head") -> None:
    """Upgrade the schema to `revision`; several processes may run it at once.

    A schema newer than this code stays as it is: migrations only add, so code one release behind runs on it.
    """
    if is_newer(current(database_url)):
        return
    with alone(database_url) as connection:
        command.upgrade(config(connection), revision)


@contextmanager
def alone(database_url: str) -> Iterator[Connection]:
    """Run the block in one transaction, while no other migrator is at work. Raises `DatabaseUnavailable`."""
    with closing(_database(database_url)) as db, db.transaction() as session:
        session.execute(select(func.pg_advisory_xact_lock(_LOCK)))
        yield session.connection()


def current(database_url: str) -> str | None:
    """Return the revision of a database; None for an empty one. Raises `DatabaseUnavailable`."""
    with closing(_database(database_url)) as db, db.transaction() as session:
        return MigrationContext.configure(session.connection()).get_current_revision()


def told(error: Exception) -> str:
    """Tell in one line why a database was not migrated, and what to do."""
    why = error if isinstance(error, DatabaseUnfit) else error.__cause__ or error
    fix = error.fix if isinstance(error, FarmError) else "check FARM_DATABASE_URL"
    return f"the database was not migrated: {str(why).strip().splitlines()[0]}; {fix}"


def is_newer(revision: str | None) -> bool:
    """Whether this code does not know a revision, so a newer release must have made it."""
    return revision is not None and revision not in {one.revision for one in _scripts().walk_revisions()}


def head() -> str | None:
    """Return the newest revision that this code knows."""
    return _scripts().get_current_head()


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(config())


def _database(url: str) -> Database:
    # Nothing but where it is: what else the environment says is no migrator's business.
    settings = Settings.model_construct(database_url=SecretStr(url), connect_seconds=_CONNECT_S)
    return Database(settings, pool_size=1, patience_s=PATIENCE_S)
