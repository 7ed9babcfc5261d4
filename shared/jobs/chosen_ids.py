"""Ids that clients choose for jobs: each owner's own, so that none tells whether another owner's job has it.

Rows share one id space. A job whose chosen id is taken there is stored under a derived one, and shown by the chosen one.
"""

from uuid import UUID, uuid5

from sqlalchemy.orm import Session

from shared.infra.tables import JobRow, RemovedJobRow


def stored(session: Session, owner: str, job_id: UUID) -> UUID:
    """Return the id under which to store an owner's job that its client calls `job_id`."""
    is_taken = session.get(JobRow, job_id) or session.get(RemovedJobRow, job_id)
    return derived(owner, job_id) if is_taken else job_id


def derived(owner: str, job_id: UUID) -> UUID:
    """Return the id under which an owner's job is stored whose own id another owner's job has."""
    return uuid5(job_id, owner)
