"""Idempotency keys and client-chosen job ids: a repeated submission returns the job that the first one made.

Key and job are written in one transaction, so neither exists without the other, and a refused submission leaves its key free.
Each owner has its own keys and ids (`chosen_ids`).
"""

import hashlib
from collections.abc import Sequence, Set
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import ARRAY, BigInteger, cast, delete, func, insert, select, tuple_, union_all
from sqlalchemy.orm import Session

from shared.errors import FarmError, KeyReused, SubmissionInFlight
from shared.infra.tables import JobRow, PromiseRow, RemovedJobRow
from shared.jobs import chosen_ids, lifecycle

KEPT_S = 48 * 3600.0


@dataclass(frozen=True, slots=True)
class Digests:
    """Digests of one request body: of the JSON that was sent, and as releases before schema 0019 computed it."""

    sent: str
    legacy: str

    def are_of(self, row: PromiseRow | JobRow) -> bool:
        """Whether a row was made from this body."""
        return row.digest == self.legacy if row.sent_digest is None else row.sent_digest == self.sent


@dataclass(frozen=True, slots=True)
class Name:
    """What a client calls a submission by: an idempotency key, or the id that its job is to have. With the body's digests."""

    owner: str
    called: str | UUID
    digests: Digests

    @property
    def lock(self) -> int:
        """The number of its lock. Two names that meet in 64 bits cost one of them a second try."""
        text = f"{self.owner}\n{self.called.hex if isinstance(self.called, UUID) else self.called}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], signed=True)


def made_before(session: Session, names: Sequence[Name]) -> Sequence[UUID | FarmError | None]:
    """Return what each name made, the id of a job or batch; None for a new name, which this transaction locks until it ends.

    Or the error that refuses it: `KeyReused` when it came with another body, `SubmissionInFlight` for the second of two at once,
    here or in another transaction; for an id `Gone` when its job was removed.
    """
    if not names:
        return []
    locked = _locked(session, {name.lock for name in names})
    used = _used(session, names)
    found: list[UUID | FarmError | None] = []
    for name in names:
        try:
            if name.lock not in locked:
                raise SubmissionInFlight(
                    "The same submission is still being processed; try again soon.", retry_after_s=1.0
                )
            made = _made(session, name) if (name.owner, name.called) in used else None
        except FarmError as error:
            found.append(error)
        else:
            found.append(made)
            if made is None:
                locked.remove(name.lock)
    return found


def earlier(session: Session, name: Name) -> UUID | None:
    """Return what a name made, without a lock: a first look, before much is done for nothing. Raises as `made_before` tells."""
    return _made(session, name) if _used(session, [name]) else None


def _used(session: Session, names: Sequence[Name]) -> Set[tuple[str, str | UUID]]:
    """Return those of the names, with their owners, that are not free."""
    keys = [(name.owner, name.called) for name in names if isinstance(name.called, str)]
    ids = [(name.owner, name.called) for name in names if isinstance(name.called, UUID)]
    used: set[tuple[str, str | UUID]] = set()
    if keys:
        promised = select(PromiseRow.owner, PromiseRow.key).where(tuple_(PromiseRow.owner, PromiseRow.key).in_(keys))
        used |= {(owner, key) for owner, key in session.execute(promised)}
    if ids:
        stored = {one: (owner, called) for owner, called in ids for one in (called, chosen_ids.derived(owner, called))}
        jobs, removed = (select(table.id, table.owner).where(table.id.in_(stored)) for table in (JobRow, RemovedJobRow))
        taken = {(owner, one) for one, owner in session.execute(union_all(jobs, removed))}
        used |= {name for name in ids if {name, (name[0], chosen_ids.derived(*name))} & taken}
    return used


def _made(session: Session, name: Name) -> UUID:
    """Return the job or batch of a name that is used."""
    if isinstance(name.called, UUID):
        row = lifecycle.get(session, name.called, owner=name.owner)
        if not name.digests.are_of(row):
            raise KeyReused(
                f"Job {name.called} was submitted with a different request body; choose a new id for a new job."
            )
        return row.id
    promise = session.get_one(PromiseRow, (name.owner, name.called))
    if not name.digests.are_of(promise):
        raise KeyReused(
            "This Idempotency-Key was already used with a different request body; use a new key for a new job."
        )
    return promise.job_id


def remember(session: Session, made: Sequence[tuple[Name, UUID]]) -> None:
    """Store new idempotency keys, each with its job or batch. An id of a client's own is remembered by its job."""
    rows = [
        {
            "owner": name.owner,
            "key": name.called,
            "digest": name.digests.legacy,
            "sent_digest": name.digests.sent,
            "job_id": made_id,
        }
        for name, made_id in made
        if isinstance(name.called, str)
    ]
    if rows:
        session.connection().execute(insert(PromiseRow), rows)


def forget(session: Session) -> None:
    """Delete keys older than `KEPT_S`."""
    session.execute(
        delete(PromiseRow).where(PromiseRow.created_at < func.now() - func.make_interval(0, 0, 0, 0, 0, 0, KEPT_S))
    )


def _locked(session: Session, numbers: Set[int]) -> set[int]:
    """Lock names until the transaction ends; return those that no other transaction holds."""
    # Not row locks: there are no rows yet.
    number = func.unnest(cast(sorted(numbers), ARRAY(BigInteger))).column_valued("number")
    tried = select(number, func.pg_try_advisory_xact_lock(number))
    return {number for number, is_held in session.execute(tried) if is_held}
