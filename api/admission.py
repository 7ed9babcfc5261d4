"""The one way from a submission to a job that will be rendered, whichever dialect it came in."""

import hashlib
import time
from dataclasses import replace
from functools import partial
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy.orm import Session

from api.callers import Caller
from api.deps import Desk
from api.v1 import inputs
from api.v1.resolution import Inputs, resolve
from api.v1.submissions import Submission
from shared import broker, fleet, jobs, promises, receivers, tracing
from shared.db import JobRow
from shared.jobs import Order
from shared.params import GenerationParams
from shared.weights import Kind


def admit(
    desk: Desk, caller: Caller, submission: Submission, *, key: str | None = None, job_id: UUID | None = None
) -> JobRow:
    """Store a job and ring for it. Once this returns the job will reach a final state, whatever dies.

    A `key` or `job_id` of the client's own that has made a job from the same submission before leads to that job.

    Raises `InvalidRequest` for what cannot be rendered, `PriorityTooHigh`, `QueueFullForKey` and `QueueFull`, `KeyReused` and
    `SubmissionInFlight`, and `Unavailable` while the database or the storage is away.
    """
    began_ns = time.time_ns()
    caller.may_rank(submission.priority)
    # Before the transaction: storing pictures takes longer than a connection should be held.
    received = inputs.receive(desk.storage, desk.intake, submission)
    digest = digest_of(submission) if key or job_id else None
    with desk.db.transaction() as session:
        earlier = _earlier(session, caller, key, job_id, digest or "")
        if earlier is not None:
            return earlier
        order = ordered(session, desk, caller, submission, received)
        desk.quota.admit(session, caller.owner, caller.max_queued)
        [row] = jobs.submit_all(session, [replace(order, job_id=job_id, digest=digest if job_id else None)])
        if key:
            promises.keep(session, caller.owner, key, digest or "", row.id)
    tracing.submitted(row.id, began_ns=began_ns, checkpoint=row.checkpoint, images=order.params.num_images)
    # After the commit: a worker that hears the doorbell must find the row.
    broker.ring(desk.celery, row.checkpoint)
    return row


def digest_of(submission: BaseModel) -> str:
    """Return what tells one submission from another, in hex."""
    return hashlib.sha256(submission.model_dump_json().encode()).hexdigest()


def _earlier(session: Session, caller: Caller, key: str | None, job_id: UUID | None, digest: str) -> JobRow | None:
    """Return the job that was made under this name before. Raises as `promises.made` and `promises.chosen`."""
    if job_id is not None:
        return promises.chosen(session, caller.owner, job_id, digest)
    made = promises.made(session, caller.owner, key, digest) if key else None
    return jobs.get(session, made) if made else None


def ordered(session: Session, desk: Desk, caller: Caller, submission: Submission, received: Inputs) -> Order:
    """Find every name of a submission, and leave nothing of it open."""
    return Order(
        params=resolved(session, desk, submission, received),
        max_attempts=desk.settings.max_attempts,
        owner=caller.owner,
        priority=submission.priority,
        endpoint_id=_receiver(session, desk, caller, submission),
        expires_in_s=submission.expires_in,
        timeout_s=submission.timeout or desk.settings.run_seconds or None,
    )


def _receiver(session: Session, desk: Desk, caller: Caller, submission: Submission) -> UUID | None:
    """Return the receiver that a submission names. Raises `BlockedUrl` and `InvalidRequest`."""
    webhook = submission.webhook
    if webhook is None:
        return None
    return receivers.named(
        session,
        owner=caller.owner,
        url=webhook.url,
        events=webhook.events,
        secret=webhook.secret.get_secret_value() if webhook.secret else None,
        allow_private=desk.settings.allow_private_urls,
    )


def resolved(session: Session, desk: Desk, submission: Submission, received: Inputs) -> GenerationParams:
    """Find every name of a submission in the fleet and leave nothing open."""
    silent_after_s = desk.settings.lease_seconds
    checkpoint = fleet.resolve_checkpoint(
        session, submission.checkpoint, default=desk.settings.default_checkpoint, silent_after_s=silent_after_s
    )
    find = partial(fleet.resolve_weights, session, silent_after_s=silent_after_s)
    return resolve(
        submission,
        checkpoint=checkpoint,
        vae=find(Kind.VAE, submission.vae) if submission.vae else None,
        find_lora=partial(find, Kind.LORA),
        inputs=received,
    )
