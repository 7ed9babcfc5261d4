"""Idempotency keys and client-chosen job ids: a repeated submission returns the job that the first one made.

Key and job are written in one transaction, so neither exists without the other, and a refused submission leaves its key free.
Each owner has its own keys and ids (`chosen_ids`).
"""

import hashlib
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from shared.errors import JobNotFound, KeyReused, SubmissionInFlight
from shared.infra.tables import JobRow, PromiseRow
from shared.jobs import lifecycle

KEPT_S = 48 * 3600.0


@dataclass(frozen=True, slots=True)
class Digests:
    """Digests of one request body: of the JSON that was sent, and as releases before schema 0019 computed it."""

    sent: str
    legacy: str

    def are_of(self, row: PromiseRow | JobRow) -> bool:
        """Whether a row was made from this body."""
        return row.digest == self.legacy if row.sent_digest is None else row.sent_digest == self.sent


def job_of_key(session: Session, owner: str, key: str, digests: Digests) -> UUID | None:
    """Return the job of an idempotency key; None for a new key, which this transaction then locks until it ends.

    Raises `KeyReused` when the key came with another body, `SubmissionInFlight` while another transaction has the lock.
    """
    _lock(session, f"{owner}\n{key}")
    row = session.get(PromiseRow, (owner, key))
    if row is None:
        return None
    if not digests.are_of(row):
        raise KeyReused(
            "This Idempotency-Key was already used with a different request body; use a new key for a new job."
        )
    return row.job_id


def job_of_id(session: Session, owner: str, job_id: UUID, digests: Digests) -> JobRow | None:
    """Return the job that an owner calls by an id; None for a new one, which this transaction then locks until it ends.

    Raises `KeyReused` when the job came from another body, `SubmissionInFlight` while another transaction has the lock,
    `Gone` for a removed job.
    """
    _lock(session, f"{owner}\n{job_id.hex}")
    try:
        row = lifecycle.get(session, job_id, owner=owner)
    except JobNotFound:
        return None
    if not digests.are_of(row):
        raise KeyReused(f"Job {job_id} was submitted with a different request body; choose a new id for a new job.")
    return row


def remember_key(session: Session, owner: str, key: str, digests: Digests, job_id: UUID) -> None:
    """Store a new idempotency key with its job."""
    session.add(PromiseRow(owner=owner, key=key, digest=digests.legacy, sent_digest=digests.sent, job_id=job_id))


def forget(session: Session) -> None:
    """Delete keys older than `KEPT_S`."""
    session.execute(
        delete(PromiseRow).where(PromiseRow.created_at < func.now() - func.make_interval(0, 0, 0, 0, 0, 0, KEPT_S))
    )


def _lock(session: Session, name: str) -> None:
    """Lock a name until the transaction ends. Raises `SubmissionInFlight` when another transaction holds it."""
    # Not a row lock: there is no row yet. The 64 bits of two names that meet cost one of them a second try.
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
    if not session.scalar(select(func.pg_try_advisory_xact_lock(number))):
        raise SubmissionInFlight("The same submission is still being processed; try again soon.", retry_after_s=1.0)
