"""The table of calls: a call is one A1111 request and the jobs that it became. No other module touches the table.

A call belongs to a session and has a name there: the client's `force_task_id`, or a generated one. It outlives the connection.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ARRAY, Uuid, cast, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session as Transaction

from api.desk import Desk
from api.jobs import queries
from shared.errors import JobAlreadyFinal
from shared.infra import events
from shared.infra.events import JobEvent
from shared.infra.tables import CallRow, JobRow
from shared.jobs import lifecycle
from shared.jobs.idempotency import Digests
from shared.vocabulary.states import JobState

# How far back unfinished calls are looked for; what is older is found by its name alone.
MOST_RECENT = 500
KEPT_DAYS = 30
SENT = "sent"
UNFINISHED = (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class A1111Call:
    """A call and its jobs, in the order of its images."""

    row: CallRow
    jobs: tuple[JobRow, ...]

    @property
    def is_running(self) -> bool:
        """Whether any of its jobs runs."""
        return any(job.state == JobState.RUNNING for job in self.jobs)

    @property
    def is_final(self) -> bool:
        """Whether all of its jobs have ended."""
        return all(JobState(job.state).is_final for job in self.jobs)

    @property
    def is_whole(self) -> bool:
        """Whether all of its jobs exist and none ended without images."""
        return len(self.jobs) == len(self.row.job_ids) and not any(
            JobState(job.state).is_final and job.state != JobState.SUCCEEDED for job in self.jobs
        )


def record(
    transaction: Transaction,
    *,
    session_id: str,
    name: str,
    made: Sequence[JobRow],
    digests: Digests,
    about: dict[str, Any],
) -> CallRow:
    """Store a call, replacing one of the same name. Also deletes the session's calls older than `KEPT_DAYS`."""
    # Not in a column: a release before schema 0019 that records another call under the name would leave it as it is.
    about = {**about, SENT: digests.sent}
    fields = {"job_ids": [job.id for job in made], "fingerprint": digests.legacy, "about": about}
    fresh = insert(CallRow).values(session_id=session_id, name=name, **fields)
    replaced = fresh.on_conflict_do_update(
        index_elements=["session_id", "name"], set_={**fields, "created_at": func.now()}
    )
    row = transaction.scalars(replaced.returning(CallRow), execution_options={"populate_existing": True}).one()
    old = func.now() - func.make_interval(0, 0, 0, KEPT_DAYS)
    transaction.execute(delete(CallRow).where(CallRow.session_id == session_id, CallRow.created_at < old))
    return row


def hold(transaction: Transaction, session_id: str, name: str) -> None:
    """Lock the name of a call until the transaction ends."""
    transaction.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"call {session_id} {name}", 0))))


def same(transaction: Transaction, session_id: str, name: str, digests: Digests) -> A1111Call | None:
    """Return a session's call of this name if it came from the same request and is whole."""
    known = find(transaction, session_id, name)
    return known if known and _is_of(known.row, digests) and known.is_whole else None


def find(transaction: Transaction, session_id: str, name: str) -> A1111Call | None:
    """Return a session's call by its name, None for an unknown one."""
    row = transaction.get(CallRow, (session_id, name), populate_existing=True)
    return None if row is None else _with_jobs(transaction, row)


def recent(transaction: Transaction, session_id: str, *, limit: int) -> list[A1111Call]:
    """List a session's calls, newest first."""
    return [_with_jobs(transaction, row) for row in transaction.scalars(_newest(session_id).limit(limit))]


def unfinished(transaction: Transaction, session_id: str) -> list[A1111Call]:
    """List a session's unfinished calls, oldest first."""
    ids = func.unnest(CallRow.job_ids)
    newest = select(ids.label("id")).where(CallRow.session_id == session_id)
    newest = newest.order_by(CallRow.created_at.desc()).limit(MOST_RECENT)
    waiting = set(transaction.scalars(select(JobRow.id).where(JobRow.id.in_(newest), JobRow.state.in_(UNFINISHED))))
    if not waiting:
        return []
    concerned = CallRow.job_ids.op("&&")(cast(list(waiting), ARRAY(Uuid)))
    rows = transaction.scalars(_newest(session_id).where(concerned)).all()
    return [_with_jobs(transaction, row) for row in reversed(rows)]


def current(transaction: Transaction, session_id: str) -> A1111Call | None:
    """Return the call that `/progress` shows and `/interrupt` stops: the oldest running one, else the oldest queued one."""
    under_way = unfinished(transaction, session_id)
    return next((call for call in under_way if call.is_running), under_way[0] if under_way else None)


def cancel(desk: Desk, made: Sequence[JobRow]) -> None:
    """Cancel the unfinished ones among these jobs, and publish it."""
    news = []
    for job in made:
        if JobState(job.state).is_final:
            continue
        with suppress(JobAlreadyFinal), desk.db.transaction() as transaction:
            row = lifecycle.cancel(transaction, job.id)
            news.append(JobEvent(row.id, JobState(row.state), row.version))
    if news:
        events.publish(desk.redis, *news)


def _is_of(row: CallRow, digests: Digests) -> bool:
    """Whether a call came of a request."""
    return bool(row.about[SENT] == digests.sent if SENT in row.about else row.fingerprint == digests.legacy)


def _newest(session_id: str) -> Any:
    return select(CallRow).where(CallRow.session_id == session_id).order_by(CallRow.created_at.desc())


def _with_jobs(transaction: Transaction, row: CallRow) -> A1111Call:
    jobs = queries.rows(transaction, row.job_ids)
    return A1111Call(row, tuple(jobs[job_id] for job_id in row.job_ids if job_id in jobs))
