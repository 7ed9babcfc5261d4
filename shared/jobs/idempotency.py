"""A client's own key for a submission, or id for its job: sent again, it leads to the job that it made and not to another.

The key is written in the transaction that writes the job, so there is never one without the other, and a submission that was
refused leaves its key free. Owners do not share keys; ids are everyone's, as long as the job is kept.
"""

import hashlib
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from shared.errors import JobNotFound, KeyReused, SubmissionInFlight
from shared.infra.db import JobRow, PromiseRow, RemovedJobRow
from shared.jobs import lifecycle

KEPT_S = 48 * 3600.0


@dataclass(frozen=True, slots=True)
class Digests:
    """What tells one body from another: the digest of what was sent, and the one that releases before schema 0019 store."""

    sent: str
    legacy: str

    def are_of(self, row: PromiseRow | JobRow) -> bool:
        """Whether a row was made from this body."""
        return row.digest == self.legacy if row.sent_digest is None else row.sent_digest == self.sent


def job_of_key(session: Session, owner: str, key: str, digests: Digests) -> UUID | None:
    """Return the job that a key has made; None for a new key, which is this transaction's until it ends.

    Raises `KeyReused` when the key came with another body, `SubmissionInFlight` while another transaction has it.
    """
    _hold(session, f"{owner}\n{key}")
    row = session.get(PromiseRow, (owner, key))
    if row is None:
        return None
    if not digests.are_of(row):
        raise KeyReused("This Idempotency-Key came with another body before; use a new key for a new job.")
    return row.job_id


def job_of_id(session: Session, owner: str, job_id: UUID, digests: Digests) -> JobRow | None:
    """Return the job that was submitted under a client's own id; None for a free id, this transaction's until it ends.

    Raises `KeyReused` when the job came from another body, `SubmissionInFlight` while another transaction has the id,
    `JobNotFound` for another owner's, `Gone` for that of a job that was removed.
    """
    _hold(session, job_id.hex)
    try:
        row = lifecycle.get(session, job_id, owner=owner)
    except JobNotFound:
        if session.get(JobRow, job_id) or session.get(RemovedJobRow, job_id):
            raise
        return None
    if not digests.are_of(row):
        raise KeyReused(f"Job {job_id} came from another body; choose a new id for a new job.")
    return row


def remember_key(session: Session, owner: str, key: str, digests: Digests, job_id: UUID) -> None:
    """Remember which job a new key has made."""
    session.add(PromiseRow(owner=owner, key=key, digest=digests.legacy, sent_digest=digests.sent, job_id=job_id))


def forget(session: Session) -> None:
    """Drop keys that are older than any client may still repeat."""
    session.execute(
        delete(PromiseRow).where(PromiseRow.created_at < func.now() - func.make_interval(0, 0, 0, 0, 0, 0, KEPT_S))
    )


def _hold(session: Session, name: str) -> None:
    """Keep others from submitting under a name until the transaction ends. Raises `SubmissionInFlight` when one is."""
    # Not a row lock: there is no row yet. The 64 bits of two names that meet cost one of them a second try.
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
    if not session.scalar(select(func.pg_try_advisory_xact_lock(number))):
        raise SubmissionInFlight("The same submission is being received just now; ask again.", retry_after_s=1.0)
