"""Admit submissions of either API: resolve them, store jobs in one transaction, ring the workers' doorbell.

Single jobs that come at once are stored together (`api.group_commit`); a batch and an A1111 call each have a transaction.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from uuid import UUID

from fastapi import Request
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

from api.admission import inputs, legacy_digests
from api.admission.checkpoint_names import CheckpointNames
from api.admission.orders import Orders, told_apart
from api.admission.resolution import StoredInputs
from api.admission.sent import Sent
from api.admission.submissions import Submission, WebhookChoice
from api.admission.sweeps import BatchSubmission
from api.callers import Caller
from api.desk import Desk
from api.group_commit import GroupCommit
from shared.errors import FarmError, KeyReused, SubmissionInFlight
from shared.infra import tracing
from shared.infra.db import Begun
from shared.infra.tables import BatchRow, JobRow
from shared.jobs import batches, chosen_ids, idempotency, lifecycle
from shared.jobs.idempotency import Digests, Name
from shared.jobs.outbox import EventType
from shared.jobs.submits import NewJob


@dataclass(frozen=True, slots=True)
class Asked:
    """A submission that waits to be stored. Its pictures are stored already."""

    caller: Caller
    submission: Submission
    received: StoredInputs
    name: Name | None


Submits = GroupCommit[Asked, JobRow]


def store_groups(desk: Desk) -> Submits:
    """Return what stores single jobs in groups. One is open while the api runs."""
    return GroupCommit(partial(store_group, desk, CheckpointNames(desk.settings)))


def submits_of(request: Request) -> Submits:
    """Return the application's."""
    submits: Submits = request.app.state.submits
    return submits


async def admit(
    submits: Submits,
    desk: Desk,
    caller: Caller,
    submission: Submission,
    sent: Sent,
    *,
    called: str | UUID | None = None,
) -> JobRow:
    """Store a job and ring for it. Once this returns, the job reaches a final state even if processes fail.

    A submission that is `called` by an idempotency key or a job id which made a job from the same body before returns that job.

    Raises `InvalidRequest` for what cannot be rendered, `PriorityTooHigh`, `QueueFullForKey`, `QueueFull`, `TooManyWebhookUrls`,
    `KeyReused`, `SubmissionInFlight`, and `Unavailable` while the database or the storage is away.
    """
    began_ns = time.time_ns()
    caller.check_priority(submission.priority)
    ask = partial(_ask, desk, caller, submission, sent, called)
    has_pictures = submission.init_image is not None
    asked = await desk.rooms.intake.run(caller.owner, ask) if has_pictures else ask()
    if isinstance(asked, JobRow):
        return asked
    row = await submits.add(caller.owner, asked)
    _trace([row], began_ns)
    return row


def store_group(desk: Desk, names: CheckpointNames, asked: Sequence[Asked]) -> Sequence[JobRow | Exception]:
    """Store single jobs in one transaction and ring for them; the outcome of each is its job or the error that refuses it.

    Where nothing has to be looked up, the transaction is one statement.
    """
    with desk.db.transaction_if_needed() as session:
        outcomes = _known(session, asked)
        orders: dict[int, NewJob] = {}
        made = Orders(session, desk.settings, names)
        for index in _in_order(asked):
            if index not in outcomes:
                try:
                    orders[index] = _order(session, desk, made, asked[index])
                except FarmError as error:
                    outcomes[index] = error
        orders = dict(sorted(orders.items()))
        if session:
            idempotency.remember(session(), _promises(asked, orders))
        rows = _stored(desk, session, list(orders.values()))
    _ring(desk, rows)
    outcomes.update(zip(orders, rows, strict=True))
    return [outcomes[index] for index in range(len(asked))]


def admit_batch(desk: Desk, caller: Caller, wanted: BatchSubmission, sent: Sent, *, key: str | None = None) -> BatchRow:
    """Store all jobs of a batch or none, in one transaction, and ring for them. Raises as `admit`."""
    began_ns = time.time_ns()
    caller.check_priority(max(one.priority for one in wanted.submissions))
    name = None
    if key is not None:
        digests = Digests(f"batch {sent.digest}", f"batch {legacy_digests.of_batch(wanted)}")
        name = Name(caller.owner, key, digests)
        with desk.db.transaction() as session:
            if made := idempotency.earlier(session, name):
                return batches.get(session, made, owner=caller.owner)
    received = inputs.store_all_inputs(desk, caller, wanted.submissions)
    with desk.db.transaction() as session:
        if name and (made := _made(session, name)):
            return batches.get(session, made, owner=caller.owner)
        orders = Orders(lambda: session, desk.settings)
        told = _told(wanted)
        orders.find_receivers(caller.owner, [told, *(one.webhook for one in wanted.submissions)])
        batch = _opened(session, wanted, caller.owner, orders.receiver(caller.owner, told))
        jobs = [
            replace(orders.order(caller.owner, one, pictures), batch_id=batch.id, batch_index=index)
            for index, (one, pictures) in enumerate(zip(wanted.submissions, received, strict=True))
        ]
        desk.quota.admit(lambda: session, caller.owner, caller.max_queued, count=len(jobs))
        idempotency.remember(session, [(name, batch.id)] if name else [])
        rows = _stored(desk, lambda: session, jobs)
    announce(desk, rows, began_ns)
    return batch


def store_all(
    session: Session, desk: Desk, caller: Caller, submissions: Sequence[Submission], received: Sequence[StoredInputs]
) -> Sequence[JobRow]:
    """Store jobs, all or none, in a transaction that has more to store. Its caller commits, then calls `announce`.

    Raises as `admit`.
    """
    caller.check_priority(max(one.priority for one in submissions))
    orders = Orders(lambda: session, desk.settings)
    jobs = [orders.order(caller.owner, one, pictures) for one, pictures in zip(submissions, received, strict=True)]
    desk.quota.admit(lambda: session, caller.owner, caller.max_queued, count=len(jobs))
    return _stored(desk, lambda: session, jobs)


def announce(desk: Desk, rows: Sequence[JobRow], began_ns: int) -> None:
    """Ring for jobs that are committed, and trace them."""
    _trace(rows, began_ns)
    _ring(desk, rows)


def _ask(desk: Desk, caller: Caller, submission: Submission, sent: Sent, called: str | UUID | None) -> JobRow | Asked:
    """Store a submission's pictures, before its transaction and for longer than a connection should be held.

    Unless it comes again: then return its job.
    """
    name = None
    if called is not None:
        name = Name(caller.owner, called, Digests(sent.digest, legacy_digests.of_job(submission)))
    if submission.init_image is None:
        return Asked(caller, submission, StoredInputs(), name)
    if name is not None:
        with desk.db.transaction() as session:
            if made := idempotency.earlier(session, name):
                return lifecycle.get(session, made)
    return Asked(caller, submission, inputs.store_inputs(desk, caller, submission), name)


def _known(session: Begun, asked: Sequence[Asked]) -> dict[int, JobRow | Exception]:
    """Return the jobs of submissions that came before, and the errors of those whose names are not theirs, by their places."""
    named = {index: one.name for index, one in enumerate(asked) if one.name}
    if not named:
        return {}
    found = dict(zip(named, idempotency.made_before(session(), list(named.values())), strict=True))
    return {index: _job(session(), made) for index, made in found.items() if made is not None}


def _job(session: Session, made: UUID | FarmError) -> JobRow | FarmError:
    """Return the job that a name made, or why there is none; it may have been deleted since."""
    if isinstance(made, FarmError):
        return made
    try:
        return lifecycle.get(session, made)
    except FarmError as error:
        return error


def _in_order(asked: Sequence[Asked]) -> Sequence[int]:
    """Return the places of submissions in the order of the webhooks that they name.

    New ones are locked until the transaction ends. In one order, so that two groups wait for each other instead of for ever.
    """
    return sorted(
        range(len(asked)), key=lambda place: told_apart(asked[place].caller.owner, asked[place].submission.webhook)
    )


def _made(session: Session, name: Name) -> UUID | None:
    [made] = idempotency.made_before(session, [name])
    if isinstance(made, FarmError):
        raise made
    return made


def _order(session: Begun, desk: Desk, made: Orders, asked: Asked) -> NewJob:
    order = made.order(asked.caller.owner, asked.submission, asked.received)
    desk.quota.admit(session, asked.caller.owner, asked.caller.max_queued)
    name = asked.name
    if name is None:
        return order
    if isinstance(name.called, UUID):
        return _named(session(), asked.caller, name.called, name.digests, order)
    return replace(order, job_id=uuid7())


def _named(session: Session, caller: Caller, job_id: UUID, digests: Digests, order: NewJob) -> NewJob:
    """Give a job the id that its client chose. Raises `KeyReused` for one who sees the other owner's job of that id."""
    stored = chosen_ids.stored(session, caller.owner, job_id)
    if stored != job_id and caller.is_admin:
        raise KeyReused(f"Job {job_id} is there already, of another owner; choose a new id for a new job.")
    chosen_id = job_id if stored != job_id else None
    return replace(order, job_id=stored, chosen_id=chosen_id, digest=digests.legacy, sent_digest=digests.sent)


def _promises(asked: Sequence[Asked], orders: Mapping[int, NewJob]) -> Sequence[tuple[Name, UUID]]:
    return [(name, made) for index, order in orders.items() if (name := asked[index].name) and (made := order.job_id)]


def _stored(desk: Desk, session: Callable[[], Session], orders: Sequence[NewJob]) -> Sequence[JobRow]:
    try:
        if isinstance(session, Begun) and not session:
            return lifecycle.submit_at_once(desk.db, orders)
        return lifecycle.submit_all(session(), orders)
    except BaseException as error:
        desk.quota.forget()  # it has counted them
        if isinstance(error, IntegrityError) and len(orders) == 1 and orders[0].digest is not None:
            # Two owners chose one id in the same moment; the next try finds the other one's.
            raise SubmissionInFlight(retry_after_s=1.0) from error
        raise


def _told(wanted: BatchSubmission) -> WebhookChoice | None:
    """Return who hears of the end of a batch."""
    webhook = wanted.webhook
    return WebhookChoice(url=webhook.url, events=[EventType.BATCH_FINISHED], secret=webhook.secret) if webhook else None


def _opened(session: Session, wanted: BatchSubmission, owner: str, endpoint_id: UUID | None) -> BatchRow:
    return batches.add(
        session,
        owner=owner,
        name=wanted.name,
        total=len(wanted.submissions),
        axes=[{"parameter": name, "values": values} for name, values in wanted.axes.items()],
        endpoint_id=endpoint_id,
    )


def _trace(rows: Sequence[JobRow], began_ns: int) -> None:
    for row in rows:
        images = row.params["num_images"]
        tracing.submitted(row.id, began_ns=began_ns, checkpoint=row.checkpoint, images=images)


def _ring(desk: Desk, rows: Sequence[JobRow]) -> None:
    # After the commit: a worker that hears the doorbell must find the row.
    for checkpoint, count in Counter(row.checkpoint for row in rows).items():
        desk.doorbells.ring(checkpoint, count)
