"""A connection to Postgres that gives up on a silent server, and that works through a pooler.

Postgres's own timeouts run on the server's clock, which stands still when the server does.

Poolers such as PgBouncer, RDS Proxy or Neon's lend a server's session for one transaction. So nothing here outlives a
transaction: no startup options, no settings of a session and, through a pooler, no prepared statements.
"""

import math
from typing import Any, TypeVar

import psycopg
from psycopg import OperationalError, ProgrammingError
from psycopg.abc import PQGen
from psycopg.errors import ConnectionTimeout

from shared.errors import DatabaseUnfit
from shared.infra.deadline import left_s

T = TypeVar("T")

# Of a host that is gone without a word; one that is only frozen still acknowledges packets.
KEEPALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}
_POLL_S = 0.1  # psycopg's own
# libpq takes whole seconds, at least two.
_LEAST_CONNECT_S = 2


class Silent(OperationalError):
    """The server did not answer in time."""


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that is closed when an answer takes longer than the block `within` allows."""

    def wait(self, gen: PQGen[T], interval: float = _POLL_S, timeout: float | None = None) -> T:
        """Wait for an answer. Raises `Silent`, and then it may have taken effect or not."""
        allowed_s = min(left_s(), math.inf if timeout is None else timeout)
        try:
            return super().wait(gen, interval, None if math.isinf(allowed_s) else max(0.0, allowed_s))
        except OperationalError as error:
            if left_s() > 0:
                raise
            self.close()  # what comes later would be taken for the answer to something else
            raise Silent("the server does not answer") from error


def connected(*arguments: Any, **parameters: Any) -> BoundedConnection:
    """Connect to a database that the farm can use. Raises `DatabaseUnfit`, `Silent` or psycopg's errors."""
    allowed_s = left_s()
    # From URLs for other programs; as text it means nothing to psycopg, and what is prepared is decided below.
    parameters.pop("prepare_threshold", None)
    if not math.isinf(allowed_s):
        parameters["connect_timeout"] = max(_LEAST_CONNECT_S, math.ceil(allowed_s))
    try:
        # Transactions are begun by `begin`, in one message with their timeouts.
        connection = BoundedConnection.connect(*arguments, autocommit=True, **{**KEEPALIVE, **parameters})
    except ConnectionTimeout as error:
        raise Silent("the server does not answer") from error
    except ProgrammingError as error:
        raise DatabaseUnfit(f"FARM_DATABASE_URL cannot be understood: {error}") from error
    try:
        _examine(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def begin() -> str:
    """Return the statements that begin a transaction: the server, too, gives it up when its time is over.

    The server is a little sooner, so that a statement that is only slow is refused by name and its connection lives.
    """
    allowed_s = left_s()
    if math.isinf(allowed_s):
        return "BEGIN"
    statement_ms, idle_ms = max(1, int(allowed_s * 900)), max(1, int(allowed_s * 1000))
    return (
        f"BEGIN; SET LOCAL statement_timeout = {statement_ms}; "
        f"SET LOCAL idle_in_transaction_session_timeout = {idle_ms}"
    )


def _examine(connection: BoundedConnection) -> None:
    """Look at what a new connection leads to. Raises `DatabaseUnfit`."""
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise DatabaseUnfit(
            f"The database {connection.info.dbname!r} is encoded as {encoding}, and prompts need UTF8; "
            f"make one by: CREATE DATABASE farm ENCODING 'UTF8' TEMPLATE template0"
        )
    asked = connection.execute("SELECT pg_backend_pid()").fetchone()
    # A pooler greets in its own name.
    if asked == (connection.info.backend_pid,):
        return
    connection.prepare_threshold = None
    try:
        connection.execute("BEGIN")
        connection.execute("ROLLBACK")
    except psycopg.Error as error:
        if "statement pooling" in str(error):
            raise DatabaseUnfit(
                "The pooler before the database takes no transactions (pool_mode=statement); set pool_mode=transaction"
            ) from error
        raise
