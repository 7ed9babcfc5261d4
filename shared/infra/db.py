"""The connection pool of Postgres, and transactions on it. Each ends within its patience, whatever the server does."""

import select
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
from psycopg.errors import DiskFull
from psycopg.rows import dict_row
from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, sessionmaker

from shared.errors import DatabaseUnavailable
from shared.infra.db_connection import Silent, begin, connected
from shared.infra.deadline import within
from shared.infra.silence import RETRY_S, Silence
from shared.settings import Settings

# Of one transaction; connecting comes on top. Less than a lease, so that a heartbeat can be repeated on another connection.
PATIENCE_S = 12.0
_POOL_S = 5.0
_AWAY = (OperationalError, InterfaceError, PoolTimeoutError, psycopg.OperationalError, psycopg.InterfaceError)
_NO_ROOM = "The database has no space left on its disk; nothing was changed. It goes on by itself once there is space."
UNSURE = (
    "The database fell silent at the very end: this may have been stored or not. Look, or send the same again with its "
    "Idempotency-Key or id, which does nothing twice."
)


class Database:
    """A connection pool and its transactions.

    A transaction, from waiting for a connection to its commit, takes at most `patience_s` and what connecting may take.
    """

    def __init__(self, settings: Settings, *, pool_size: int = 10, patience_s: float = PATIENCE_S) -> None:
        self._hello_s = settings.connect_seconds
        self._patience_s = patience_s + settings.connect_seconds
        self._silence = Silence()
        self.engine: Engine = create_engine(
            normalized_url(settings.database_url.get_secret_value()),
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=_POOL_S,
            # Prompts and digests of keys would be in the log with every statement that fails.
            hide_parameters=True,
        )
        event.listen(self.engine, "do_connect", self._connect)
        event.listen(self.engine, "begin", self._begin)
        # With what is written in them about the farm's own addresses.
        self._sessions = sessionmaker(self.engine, expire_on_commit=False, info={"root_path": settings.root_path})

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Run the block in a transaction: commit at its end, roll back if it raises. Raises `DatabaseUnavailable`."""
        if self._silence.holds():
            raise DatabaseUnavailable(retry_after_s=RETRY_S)
        is_ending = False
        try:
            with within(self._patience_s), self._begun() as session:
                yield session
                session.flush()
                is_ending = True
                session.commit()
        except _AWAY as error:
            is_unsure = is_ending and getattr(error, "connection_invalidated", False)
            raise DatabaseUnavailable(_why(error, is_unsure=is_unsure)) from error

    @contextmanager
    def transaction_if_needed(self) -> Iterator["Begun"]:
        """Run the block in a transaction that begins when it is first asked for a session. Raises `DatabaseUnavailable`."""
        with ExitStack() as stack:
            yield Begun(lambda: stack.enter_context(self.transaction()))

    def at_once(self, statement: str, parameters: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """Run a statement that is a transaction of its own, in one round trip. Raises `DatabaseUnavailable`.

        Parameters are named as psycopg's, `%(name)s`.
        """
        if self._silence.holds():
            raise DatabaseUnavailable(retry_after_s=RETRY_S)
        is_cut_off = False
        try:
            with within(self._patience_s), self.engine.connect() as connection:
                if not _is_idle(connection):
                    connection.invalidate()  # with all that are as old; the next one is new
                driver = connection.connection.driver_connection
                assert driver is not None  # noqa: S101 - narrows the type; a connection that is open has one
                try:
                    answer = list(driver.cursor(row_factory=dict_row).execute(statement, parameters))
                finally:
                    # By the server's end, or by us: a statement that waits for a lock is as silent as a server that hangs, and
                    # no sign of one.
                    is_cut_off = driver.closed
                    if is_cut_off:
                        connection.invalidate()
        except _AWAY as error:
            raise DatabaseUnavailable(_why(error, is_unsure=is_cut_off)) from error
        self._silence.end()
        return answer

    def ping(self) -> None:
        """Raise `DatabaseUnavailable` unless the database answers."""
        with self.transaction() as session:
            session.execute(text("SELECT 1"))

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()

    def _begun(self) -> Session:
        """Return a session with a transaction. A connection that died in the pool is replaced, with all of its age."""
        session = self._sessions()
        try:
            session.connection()
        except DBAPIError as error:
            session.close()
            if isinstance(error.orig, Silent):
                self._silence.begin()
                raise
            if not error.connection_invalidated:
                raise
            session.connection()
        self._silence.end()
        return session

    def _connect(self, _dialect: Any, _record: Any, arguments: list[Any], parameters: dict[str, Any]) -> Any:
        with within(self._hello_s):
            return connected(*arguments, **parameters)

    def _begin(self, connection: Connection) -> None:
        """Begin a transaction, which tells as well whether the server still answers."""
        if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
            return
        statements = begin()
        with within(self._hello_s):
            # Without parameters, not even none: only so are several statements one message.
            connection.exec_driver_sql(statements, execution_options={"no_parameters": True})


class Begun:
    """A transaction that begins when a session is first asked for."""

    def __init__(self, begin: Callable[[], Session]) -> None:
        self._begin = begin
        self._session: Session | None = None

    def __call__(self) -> Session:
        """Return the session."""
        if self._session is None:
            self._session = self._begin()
        return self._session

    def __bool__(self) -> bool:
        """Whether the transaction has begun."""
        return self._session is not None


def _is_idle(connection: Connection) -> bool:
    """Whether nothing waits to be read: what a server says unasked is that it has gone."""
    driver = connection.connection.driver_connection
    if driver is None or driver.closed:
        return False
    unasked = select.poll()  # `select` knows no descriptor beyond 1,023
    unasked.register(driver.fileno(), select.POLLIN)
    return not unasked.poll(0)


def _why(error: Exception, *, is_unsure: bool) -> str:
    if isinstance(getattr(error, "orig", None) or error, DiskFull):
        return _NO_ROOM
    return UNSURE if is_unsure else ""


def normalized_url(url: str) -> str:
    """Turn `postgres://` and `postgresql://` into `postgresql+psycopg://`: hosting services hand these out."""
    parsed = make_url(url)
    if parsed.drivername in {"postgres", "postgresql"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    return parsed.render_as_string(hide_password=False)
