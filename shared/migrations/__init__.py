"""Alembic migrations: the schema's history, from the first day. `python -m shared.migrations` brings a database up to date."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from shared.db import normalized_url


def config(database_url: str) -> Config:
    """Return the alembic configuration for one database; no ini file is needed."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent))
    # A percent sign in a password would otherwise be read as interpolation.
    made.set_main_option("sqlalchemy.url", normalized_url(database_url).replace("%", "%%"))
    return made


def upgrade(database_url: str, revision: str = "head") -> None:
    """Bring the schema up to `revision`; safe to run from several processes at once."""
    command.upgrade(config(database_url), revision)


def head() -> str | None:
    """Return the newest revision that this code knows."""
    return ScriptDirectory.from_config(config("postgresql://")).get_current_head()
