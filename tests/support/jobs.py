"""Jobs in the database: submitted, claimed and read, each time in a transaction of its own."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from shared.infra.db import Database
from shared.infra.tables import JobRow
from shared.jobs import lifecycle
from shared.jobs.lifecycle import Claim
from shared.jobs.submits import NewJob
from tests.support.factories import DEMO, params

LEASE_S = 20.0
MAX_ATTEMPTS = 2


def submit(db: Database, **changes: Any) -> UUID:
    """Submit a job; fields of `NewJob` and of its parameters are told apart by their names."""
    return submit_many(db, 1, **changes)[0]


def submit_many(db: Database, times: int, **changes: Any) -> list[UUID]:
    """Submit equal jobs in one transaction."""
    about = {name: changes.pop(name) for name in [*changes] if name in NewJob.__dataclass_fields__}
    with db.transaction() as session:
        return [_submit(session, changes, about) for _ in range(times)]


def claim(db: Database, worker: str = "w", *, oldest_level: bool = False) -> Claim | None:
    """Claim the next job of the demo checkpoint, if there is one."""
    with db.transaction() as session:
        return lifecycle.claim_next(session, DEMO, worker, lease_s=LEASE_S, oldest_level=oldest_level)


def claimed(db: Database, worker: str = "w") -> Claim:
    """Claim the next job of the demo checkpoint, which is there."""
    with db.transaction() as session:
        return claimed_in(session, worker)


def claimed_in(session: Session, worker: str = "w") -> Claim:
    """Claim as `claimed` does, in a transaction that goes on."""
    taken = lifecycle.claim_next(session, DEMO, worker, lease_s=LEASE_S)
    assert taken is not None
    return taken


def row(db: Database, job_id: UUID) -> JobRow:
    """Read a job."""
    with db.transaction() as session:
        return lifecycle.get(session, job_id)


def _submit(session: Session, changes: Mapping[str, Any], about: Mapping[str, Any]) -> UUID:
    return lifecycle.submit(session, params(**changes), **{"max_attempts": MAX_ATTEMPTS, **about}).id
