"""The connection pool of Postgres, and transactions on it."""

from collections.abc import Iterator
from contextlib import contextmanager

from psycopg.errors import DiskFull
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, sessionmaker

from shared.errors import DatabaseUnavailable
from shared.settings import Settings

_NO_ROOM = "The database has no space left on its disk; nothing was changed. It goes on by itself once there is space."


class Database:
    """A connection pool and its transactions."""

    def __init__(self, settings: Settings, *, pool_size: int = 10) -> None:
        self.engine: Engine = create_engine(
            normalized_url(settings.database_url.get_secret_value()),
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=5,
            pool_pre_ping=True,
            # Prompts and digests of keys would be in the log with every statement that fails.
            hide_parameters=True,
            connect_args={
                "connect_timeout": max(2, int(settings.connect_seconds)),
                "options": "-c statement_timeout=15000",
            },
        )
        # With what is written in them about the farm's own addresses.
        self._sessions = sessionmaker(self.engine, expire_on_commit=False, info={"root_path": settings.root_path})

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Run the block in a transaction: commit at its end, roll back if it raises. Raises `DatabaseUnavailable`."""
        try:
            with self._sessions.begin() as session:
                yield session
        except (OperationalError, InterfaceError, PoolTimeoutError) as error:
            raise DatabaseUnavailable(_NO_ROOM if _is_full(error) else "") from error

    def ping(self) -> None:
        """Raise `DatabaseUnavailable` unless the database answers."""
        with self.transaction() as session:
            session.execute(text("SELECT 1"))

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def _is_full(error: Exception) -> bool:
    return isinstance(getattr(error, "orig", None), DiskFull)


def normalized_url(url: str) -> str:
    """Turn `postgres://` and `postgresql://` into `postgresql+psycopg://`: hosting services hand these out."""
    parsed = make_url(url)
    if parsed.drivername in {"postgres", "postgresql"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    return parsed.render_as_string(hide_password=False)
