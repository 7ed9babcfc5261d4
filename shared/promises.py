"""A client's own key for a submission: sent again, it leads to the job that it made and not to another.

The key is written in the transaction that writes the job, so there is never one without the other, and a submission that was
refused leaves its key free. Owners do not share keys.
"""

import hashlib
from uuid import UUID

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from shared.db import PromiseRow
from shared.errors import KeyReused, SubmissionInFlight

KEPT_S = 48 * 3600.0


def made(session: Session, owner: str, key: str, digest: str) -> UUID | None:
    """Return the job that a key has made; None for a new key, which is this transaction's until it ends.

    Raises `KeyReused` when the key came with another body, `SubmissionInFlight` while another transaction has it.
    """
    # Not a row lock: there is no row yet. The 64 bits of two keys that meet cost one of them a second try.
    number = int.from_bytes(hashlib.sha256(f"{owner}\n{key}".encode()).digest()[:8], signed=True)
    if not session.scalar(select(func.pg_try_advisory_xact_lock(number))):
        raise SubmissionInFlight(
            "A submission with this Idempotency-Key is being received; ask again.", retry_after_s=1.0
        )
    row = session.get(PromiseRow, (owner, key))
    if row is None:
        return None
    if row.digest != digest:
        raise KeyReused("This Idempotency-Key came with another body before; use a new key for a new job.")
    return row.job_id


def keep(session: Session, owner: str, key: str, digest: str, job_id: UUID) -> None:
    """Remember which job a new key has made."""
    session.add(PromiseRow(owner=owner, key=key, digest=digest, job_id=job_id))


def forget(session: Session) -> None:
    """Drop keys that are older than any client may still repeat."""
    session.execute(
        delete(PromiseRow).where(PromiseRow.created_at < func.now() - func.make_interval(0, 0, 0, 0, 0, 0, KEPT_S))
    )
