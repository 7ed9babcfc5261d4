"""The tables, as SQLAlchemy classes; `test_the_schema_is_what_the_code_declares` compares them with the migrations.

Only `shared.jobs` (its docstring says which module), `shared.webhooks` and `shared.fleet` write them, but for keys, sessions and
calls (api) and canaries (worker). Times are UTC by the database's clock, so that leases do not depend on clocks of workers.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, BigInteger, CheckConstraint, DateTime, ForeignKey, Index, String, Text, Uuid, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from shared.vocabulary.states import JobState

_STATES = ", ".join(f"'{state}'" for state in JobState)
_NEWEST = text("created_at DESC"), text("id DESC")
_BEST = text("priority DESC"), "virtual_start", "id"


def _partial(name: str, *columns: Any, where: str) -> Index:
    return Index(name, *columns, postgresql_where=text(where))


class Base(DeclarativeBase):
    """Declares the schema that the migrations build."""

    type_annotation_map = {datetime: DateTime(timezone=True), dict[str, Any]: JSONB}  # noqa: RUF012 - SQLAlchemy's protocol


class JobRow(Base):
    """One job. `attempt` is the fencing token of every write by a worker; `version` grows with every visible change."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(f"state IN ({_STATES})", name="jobs_state_known"),
        # What a claim walks: the best queued job of a checkpoint, without sorting (`shared.jobs.claims`).
        _partial("jobs_queued", "checkpoint", *_BEST, where="state = 'queued' AND NOT parked"),
        # The first of a priority at any checkpoint, for its clock.
        Index(
            "jobs_queued_by_start",
            "priority",
            "virtual_start",
            postgresql_where=text("state = 'queued' AND NOT parked"),
        ),
        # The oldest, for the claims that look after what waits longest.
        Index("jobs_queued_by_age", "checkpoint", "created_at", "id", postgresql_where=text("state = 'queued'")),
        # One owner's: to count them, and to find the next one parked.
        _partial("jobs_queued_by_owner", "owner", "checkpoint", "parked", *_BEST, where="state = 'queued'"),
        # Whose jobs are parked, and where.
        _partial("jobs_parked", "owner", "checkpoint", where="state = 'queued' AND parked"),
        Index("jobs_running_by_owner", "owner", postgresql_where=text("state = 'running'")),
        Index("jobs_running", "lease_until", postgresql_where=text("state = 'running'")),
        Index("jobs_expiring", "expires_at", postgresql_where=text("state = 'queued' AND expires_at IS NOT NULL")),
        # For listings, newest first. By time, not by id: clients may choose ids of their own.
        Index("jobs_by_age", *_NEWEST),
        Index("jobs_by_owner", "owner", *_NEWEST),
        Index("jobs_by_state", "state", *_NEWEST),
        Index("jobs_by_checkpoint", "checkpoint", *_NEWEST),
        Index("jobs_by_error", "error_code", *_NEWEST, postgresql_where=text("error_code IS NOT NULL")),
        Index("jobs_of_batch", "batch_id", "batch_index", postgresql_where=text("batch_id IS NOT NULL")),
        Index("jobs_retries", "retry_of", postgresql_where=text("retry_of IS NOT NULL")),
        # Receivers that unfinished jobs of an owner name.
        _partial(
            "jobs_naming", "owner", "endpoint_id", where="endpoint_id IS NOT NULL AND state IN ('queued', 'running')"
        ),
        Index("jobs_snapshots", "id", postgresql_where=text("snapshot_attempt IS NOT NULL")),
        # Who starts from a stored picture.
        _partial("jobs_of_init_image", text("(params->>'init_image')"), where="params->>'init_image' IS NOT NULL"),
        _partial("jobs_of_mask_image", text("(params->>'mask_image')"), where="params->>'mask_image' IS NOT NULL"),
        Index("jobs_finished", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
        # Those that ended and may have left objects that nobody sees.
        Index(
            "jobs_litter",
            "finished_at",
            postgresql_where=text(
                "finished_at IS NOT NULL AND NOT is_swept AND attempt > 0 AND (attempt > 1 OR state <> 'succeeded')"
            ),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    # What its client calls it, where another owner's job had that id already; null for all others.
    chosen_id: Mapped[UUID | None]
    owner: Mapped[str] = mapped_column(server_default="anonymous")
    state: Mapped[str] = mapped_column(server_default=JobState.QUEUED)
    version: Mapped[int] = mapped_column(BigInteger, server_default="1")
    checkpoint: Mapped[str]
    priority: Mapped[int] = mapped_column(server_default="0")
    # Its place in the fair order of its priority (`shared.jobs.fair_queue`); it keeps it when it is handed back.
    virtual_start: Mapped[float] = mapped_column(server_default="0")
    virtual_finish: Mapped[float] = mapped_column(server_default="0")
    # Beyond what its owner may run at once: out of the way of claims until others of it have been claimed.
    parked: Mapped[bool] = mapped_column(server_default=text("false"))
    params: Mapped[dict[str, Any]]
    attempt: Mapped[int] = mapped_column(server_default="0")
    max_attempts: Mapped[int]
    # Attempts that ended in an error, or in the loss of a worker on which the job ran alone. What others did does not count.
    faults: Mapped[int] = mapped_column(server_default="0")
    # Workers that were lost while they ran the job. From the second on each halves the company in which it runs.
    losses: Mapped[int] = mapped_column(server_default="0")
    # A second worker was lost. Workers before schema 0020 run it alone, for they know no `losses`.
    suspect: Mapped[bool] = mapped_column(server_default=text("false"))
    worker_id: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    # A queued job waits for this before its next attempt.
    not_before: Mapped[datetime | None]
    # A job that is still queued then is given up.
    expires_at: Mapped[datetime | None]
    # How long one attempt may run, in seconds; null for ever.
    timeout_s: Mapped[float | None]
    retry_of: Mapped[UUID | None]
    # Of the body that a client chose the id for: the same again is this job. `digest` is that of releases before schema 0019.
    digest: Mapped[str | None]
    sent_digest: Mapped[str | None]
    batch_id: Mapped[UUID | None]
    batch_index: Mapped[int | None]  # its place there, from 0
    steps_done: Mapped[int] = mapped_column(server_default="0")
    snapshot_attempt: Mapped[int | None]  # the one that kept the latest snapshot; null for none
    resumed_from_step: Mapped[int] = mapped_column(server_default="0")
    steps_total: Mapped[int]
    # `GenerationParams.cost`: what forecasts and shares are counted in.
    cost: Mapped[int] = mapped_column(BigInteger, server_default="0")
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    error_retryable: Mapped[bool | None]
    # The receiver that the job itself names, in webhook_endpoints.
    endpoint_id: Mapped[UUID | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    # Whether the objects of attempts that came to nothing are gone from the storage.
    is_swept: Mapped[bool] = mapped_column(server_default=text("false"))

    images: Mapped[list["ImageRow"]] = relationship(order_by="ImageRow.index", lazy="selectin")

    @property
    def shown_id(self) -> UUID:
        """The id by which clients know the job."""
        return self.chosen_id or self.id


class BatchRow(Base):
    """Jobs that were submitted together. Each transaction that ends some of them counts `unfinished` down."""

    __tablename__ = "batches"
    __table_args__ = (
        Index("batches_of_owner", "owner", text("id DESC")),
        _partial("batches_naming", "owner", "endpoint_id", where="endpoint_id IS NOT NULL AND finished_at IS NULL"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    owner: Mapped[str]
    name: Mapped[str | None]
    total: Mapped[int]
    unfinished: Mapped[int]
    # Of a sweep: each parameter and its values; the last changes fastest.
    axes: Mapped[list[Any]] = mapped_column(JSONB)
    endpoint_id: Mapped[UUID | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]


class PromiseRow(Base):
    """An idempotency key and the job or batch that it made (`shared.jobs.idempotency`)."""

    __tablename__ = "promises"
    __table_args__ = (Index("promises_by_age", "created_at"),)

    owner: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str]  # that of releases before schema 0019, which leave the next one null
    sent_digest: Mapped[str | None]
    job_id: Mapped[UUID]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class UploadRow(Base):
    """An upload: a picture that a client has announced and PUTs straight to the storage (`shared.jobs.uploads`)."""

    __tablename__ = "uploads"
    __table_args__ = (Index("uploads_by_age", "created_at"), Index("uploads_of_owner", "owner"))

    id: Mapped[UUID] = mapped_column(primary_key=True)
    owner: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class InputRow(Base):
    """A stored init image or mask. It is kept at least until `kept_until` (`shared.jobs.inputs`)."""

    __tablename__ = "inputs"
    __table_args__ = (Index("inputs_by_time", "kept_until"),)

    key: Mapped[str] = mapped_column(primary_key=True)
    kept_until: Mapped[datetime]


class RemovedJobRow(Base):
    """Tombstone of a removed job: its id answers 410 to its owner."""

    __tablename__ = "removed_jobs"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    owner: Mapped[str]
    removed_at: Mapped[datetime] = mapped_column(server_default=func.now())


class OwnerShareRow(Base):
    """The virtual finish of an owner's last job at a priority, over all checkpoints (`shared.jobs.fair_queue`)."""

    __tablename__ = "owner_shares"

    priority: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    owner: Mapped[str] = mapped_column(primary_key=True)
    finish: Mapped[float]


class PriorityClockRow(Base):
    """The virtual time of the farm at a priority: the latest start that was claimed in turn, over all checkpoints."""

    __tablename__ = "priority_clocks"

    priority: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    virtual_now: Mapped[float] = mapped_column(server_default="0")


class ShareRow(Base):
    """The virtual finish of an owner's last job at a checkpoint and priority: the end of that lane."""

    __tablename__ = "shares"

    checkpoint: Mapped[str] = mapped_column(primary_key=True)
    priority: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    owner: Mapped[str] = mapped_column(primary_key=True)
    finish: Mapped[float]


class ClockRow(Base):
    """The virtual time of a checkpoint at a priority: the latest start that was claimed there, at most the farm's."""

    __tablename__ = "clocks"

    checkpoint: Mapped[str] = mapped_column(primary_key=True)
    priority: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    virtual_now: Mapped[float] = mapped_column(server_default="0")


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
    """One gpu worker process, as it last reported. Alive while `seen_at` is fresh."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    # Whose weights are in its pipeline, and whose it is about to bring there.
    checkpoint: Mapped[str] = mapped_column(ForeignKey("checkpoints.name"), index=True)
    intends: Mapped[str | None]
    # A digest of the names that it can load (`shared.fleet.holdings`).
    library: Mapped[str | None]
    # How many checkpoints its memory keeps warm, and how often the one in the pipeline has changed.
    keeps: Mapped[int] = mapped_column(server_default="1")
    swaps: Mapped[int] = mapped_column(server_default="0")
    hostname: Mapped[str]
    device: Mapped[str]
    slots: Mapped[int]
    # What the worker measured while it had work: cost a second, seconds a tick, images in a UNet call.
    speed: Mapped[float | None]
    tick_s: Mapped[float | None]
    batch_fill: Mapped[float | None]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
    # Since when the worker is asked to finish and leave.
    draining_at: Mapped[datetime | None]
    # Why it took itself out of service; a process that starts in its place and is well clears it.
    unfit: Mapped[str | None]
    temperature_c: Mapped[float | None]
    ecc_errors: Mapped[int | None]
    xid: Mapped[int | None]


class CanaryRow(Base):
    """A worker's last self-test: the fingerprint of its weights and a small raw picture."""

    __tablename__ = "canaries"

    key: Mapped[str] = mapped_column(primary_key=True)
    worker_id: Mapped[str] = mapped_column(primary_key=True)
    weights: Mapped[str]
    picture: Mapped[bytes]
    shown_at: Mapped[datetime] = mapped_column(server_default=func.now())


class CheckpointRow(Base):
    """A checkpoint that a worker has announced. Jobs may name it from then on, also while no worker serves it."""

    __tablename__ = "checkpoints"

    name: Mapped[str] = mapped_column(primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str | None]
    announced_at: Mapped[datetime] = mapped_column(server_default=func.now())
    # The cost a second of the jobs that name it: a mean that forgets (`worker.fleet.demand`).
    demand: Mapped[float] = mapped_column(server_default="0")
    # Jobs that came before this are in it.
    measured_at: Mapped[datetime | None]


class HoldingRow(Base):
    """A checkpoint in a worker's library: the nearest tier it lies in, and the seconds to make it resident from there."""

    __tablename__ = "holdings"

    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id", ondelete="CASCADE"), primary_key=True)
    checkpoint: Mapped[str] = mapped_column(ForeignKey("checkpoints.name"), primary_key=True, index=True)
    tier: Mapped[str]
    price_s: Mapped[float]
    # Why this worker cannot load it.
    refused: Mapped[str | None]


class WeightsRow(Base):
    """A LoRA, embedding or VAE in the folders of a worker, and when a worker last saw it there."""

    __tablename__ = "weights"

    kind: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    alias: Mapped[str | None]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    vectors: Mapped[int | None]  # of an embedding: how many tokens it takes
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())


class KeyRow(Base):
    """An API key. Its `id` is the `owner` of its rows; only the hash of its secret is stored. A null limit means none."""

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


class SessionRow(Base):
    """The A1111 options of one client, by the key or the address that it calls from."""

    __tablename__ = "sessions"

    id: Mapped[str] = mapped_column(primary_key=True)
    options: Mapped[dict[str, Any]]
    changed_at: Mapped[datetime] = mapped_column(server_default=func.now())


class CallRow(Base):
    """One A1111 generation call, by the task name that the client chose, and the jobs that it became."""

    __tablename__ = "calls"
    __table_args__ = (Index("calls_by_age", "session_id", "created_at"),)

    session_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    job_ids: Mapped[list[UUID]] = mapped_column(ARRAY(Uuid))
    fingerprint: Mapped[str]  # of what was asked, as releases before schema 0019 tell it; that of today's is in `about`
    about: Mapped[dict[str, Any]]  # what its answer says beyond what the jobs know
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class EndpointRow(Base):
    """A webhook endpoint: registered for all jobs of its owner, or named by jobs, which share the row if they name the same."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (
        Index("webhook_endpoints_registered", "owner", postgresql_where=text("registered")),
        Index("webhook_endpoints_named", "owner", "used_at", postgresql_where=text("NOT registered")),
        Index("webhook_endpoints_proven", "owner", "origin", postgresql_where=text("proven_at IS NOT NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    owner: Mapped[str]
    url: Mapped[str]
    # Scheme, host and port: what shares them shares one receiver's patience.
    origin: Mapped[str]
    events: Mapped[list[str]] = mapped_column(ARRAY(Text))
    registered: Mapped[bool]
    state: Mapped[str] = mapped_column(server_default="active")
    # Null signs with the owner's secret.
    secret: Mapped[str | None]
    old_secret: Mapped[str | None]
    old_secret_until: Mapped[datetime | None]
    # When it first took a delivery. Until then its origin has to prove that it answers at all.
    proven_at: Mapped[datetime | None]
    # Since when nothing has been delivered though it was tried; null while it works.
    failing_since: Mapped[datetime | None]
    # Nothing is sent before: the receiver's own wish, or the next probe.
    hold_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    used_at: Mapped[datetime] = mapped_column(server_default=func.now())


class OwnerSecretRow(Base):
    """The secret that signs the webhooks of jobs that bring none."""

    __tablename__ = "webhook_secrets"

    owner: Mapped[str] = mapped_column(primary_key=True)
    secret: Mapped[str]
    old_secret: Mapped[str | None]
    old_secret_until: Mapped[datetime | None]


class EventRow(Base):
    """Outbox: one change of a job's state, or the end of a batch (its id is in `job_id`), written in the same transaction.

    Transactions end in another order than they take ids, so a reader goes by (`txid`, `id`), up to the oldest unfinished one.
    """

    __tablename__ = "events"
    __table_args__ = (
        Index("events_of_job", "job_id", "version", unique=True),
        Index("events_of_owner", "owner", "txid", "id"),
        Index("events_in_order", "txid", "id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    owner: Mapped[str]
    job_id: Mapped[UUID]
    version: Mapped[int] = mapped_column(BigInteger)
    type: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    txid: Mapped[int] = mapped_column(BigInteger, server_default=text("pg_current_xact_id()::text::bigint"))
    # What its webhooks say, fixed when it happened; null when nobody listened.
    body: Mapped[str | None]


class DeliveryRow(Base):
    """One event for one webhook endpoint. `attempt` fences the couriers' writes; `log` lists the attempts."""

    __tablename__ = "deliveries"
    __table_args__ = (
        Index("deliveries_due", "endpoint_id", "next_at", postgresql_where=text("state = 'pending'")),
        Index(
            "deliveries_waiting", "owner", "endpoint_id", "next_at", "id", postgresql_where=text("state = 'pending'")
        ),
        Index("deliveries_of_owner", "owner", text("id DESC")),
        Index("deliveries_of_job", "job_id"),
        Index("deliveries_of_event", "event_id", "endpoint_id", unique=True),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    owner: Mapped[str]
    job_id: Mapped[UUID]
    event_id: Mapped[int] = mapped_column(ForeignKey("events.id", ondelete="CASCADE"))
    endpoint_id: Mapped[UUID] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    state: Mapped[str] = mapped_column(server_default="pending")
    attempt: Mapped[int] = mapped_column(server_default="0")
    # Failed attempts since the last replay; they decide how long to wait.
    tries: Mapped[int] = mapped_column(server_default="0")
    next_at: Mapped[datetime] = mapped_column(server_default=func.now())
    leased_until: Mapped[datetime | None]
    log: Mapped[list[Any]] = mapped_column(JSONB, server_default=text("'[]'::jsonb"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]

    event: Mapped[EventRow] = relationship(lazy="joined", innerjoin=True)
    endpoint: Mapped[EndpointRow] = relationship(lazy="joined", innerjoin=True)
