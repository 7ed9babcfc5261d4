"""The tables and the one way to reach them. Rows are written by `shared.jobs` and `shared.fleet` alone.

Times are timestamptz in UTC, taken from the database's own clock so that leases do not depend on the clocks of workers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Index,
    String,
    create_engine,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

from shared.errors import DatabaseUnavailable
from shared.settings import Settings
from shared.states import JobState

_STATES = ", ".join(f"'{state}'" for state in JobState)


class Base(DeclarativeBase):
    """Declares the schema that the migrations build."""

    type_annotation_map = {datetime: DateTime(timezone=True), dict[str, Any]: JSONB}  # noqa: RUF012 - SQLAlchemy's protocol


class JobRow(Base):
    """One job. `attempt` is the fencing token of every write by a worker; `version` grows with every visible change."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(f"state IN ({_STATES})", name="jobs_state_known"),
        # What `claim_next` walks: the best queued job of a checkpoint, without sorting.
        Index("jobs_queued", "checkpoint", text("priority DESC"), "id", postgresql_where=text("state = 'queued'")),
        Index("jobs_running", "lease_until", postgresql_where=text("state = 'running'")),
        Index("jobs_by_state", "state", text("id DESC")),
        Index("jobs_by_checkpoint", "checkpoint", text("id DESC")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(server_default="anonymous")
    state: Mapped[str] = mapped_column(server_default=JobState.QUEUED)
    version: Mapped[int] = mapped_column(BigInteger, server_default="1")
    checkpoint: Mapped[str]
    priority: Mapped[int] = mapped_column(server_default="0")
    params: Mapped[dict[str, Any]]
    attempt: Mapped[int] = mapped_column(server_default="0")
    max_attempts: Mapped[int]
    # Attempts that ended in an error or a lost lease. A drained attempt is nobody's fault and does not count.
    faults: Mapped[int] = mapped_column(server_default="0")
    worker_id: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    steps_done: Mapped[int] = mapped_column(server_default="0")
    steps_total: Mapped[int]
    # `GenerationParams.cost`: what forecasts and shares are counted in.
    cost: Mapped[int] = mapped_column(BigInteger, server_default="0")
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    error_retryable: Mapped[bool | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    images: Mapped[list["ImageRow"]] = relationship(order_by="ImageRow.index", lazy="selectin")


class ImageRow(Base):
    """One finished image of a job that succeeded; `key` names its object in the storage."""

    __tablename__ = "images"

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    index: Mapped[int] = mapped_column(primary_key=True)
    seed: Mapped[int] = mapped_column(BigInteger)
    key: Mapped[str]
    content_type: Mapped[str]
    width: Mapped[int]
    height: Mapped[int]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    flagged: Mapped[bool] = mapped_column(server_default=text("false"))


class WorkerRow(Base):
    """One gpu worker process, as it last announced itself. Alive while `seen_at` is fresh."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    checkpoint: Mapped[str] = mapped_column(ForeignKey("checkpoints.name"), index=True)
    hostname: Mapped[str]
    device: Mapped[str]
    slots: Mapped[int]
    # What the worker measured while it had work: cost a second, seconds a tick, images in a UNet call.
    speed: Mapped[float | None]
    tick_s: Mapped[float | None]
    batch_fill: Mapped[float | None]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())


class CheckpointRow(Base):
    """One checkpoint that some worker has announced; jobs may name it from then on, also while no worker serves it."""

    __tablename__ = "checkpoints"

    name: Mapped[str] = mapped_column(primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    announced_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WeightsRow(Base):
    """A LoRA, embedding or VAE that some worker has in its folders, and when one last saw it there."""

    __tablename__ = "weights"

    kind: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    alias: Mapped[str | None]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())


class KeyRow(Base):
    """An API key. `id` stands as owner on everything that it makes; of its secret only the hash is kept. Null limits nothing."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    prefix: Mapped[str] = mapped_column(unique=True)
    hash: Mapped[bytes]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(String))
    weight: Mapped[float] = mapped_column(server_default="1")
    max_priority: Mapped[int] = mapped_column(server_default="0")
    requests_per_minute: Mapped[int | None]
    max_queued: Mapped[int | None]
    max_running: Mapped[int | None]
    paused: Mapped[bool] = mapped_column(server_default=text("false"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    # To the minute: an update for every request would be a write for every read.
    last_used_at: Mapped[datetime | None]


class Database:
    """A pool of connections and the transactions made on it."""

    def __init__(self, settings: Settings, *, pool_size: int = 10) -> None:
        self.engine: Engine = create_engine(
            normalized_url(settings.database_url.get_secret_value()),
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=5,
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": max(2, int(settings.connect_seconds)),
                "options": "-c statement_timeout=15000",
            },
        )
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """One transaction: committed when the block ends, rolled back when it raises.

        A connection that cannot be had or breaks becomes `DatabaseUnavailable`.
        """
        try:
            with self._sessions.begin() as session:
                yield session
        except (OperationalError, InterfaceError, PoolTimeoutError) as error:
            raise DatabaseUnavailable from error

    def ping(self) -> None:
        """Raise `DatabaseUnavailable` unless the database answers."""
        with self.transaction() as session:
            session.execute(text("SELECT 1"))

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def normalized_url(url: str) -> str:
    """Accept the `postgres://` and `postgresql://` that hosting services hand out; psycopg 3 is the driver."""
    parsed = make_url(url)
    if parsed.drivername in {"postgres", "postgresql"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    return parsed.render_as_string(hide_password=False)
