"""Admit submissions of either API: resolve them, store jobs in one transaction, ring the workers' doorbell."""

import time
from collections import Counter
from dataclasses import replace
from functools import cache, partial
from uuid import UUID

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from api.admission import inputs, legacy_digests
from api.admission.resolution import StoredInputs, resolve
from api.admission.sent import Sent
from api.admission.submissions import Submission, WebhookChoice
from api.admission.sweeps import BatchSubmission
from api.callers import Caller
from api.desk import Desk
from shared.errors import KeyReused, SubmissionInFlight
from shared.files.weights import Kind
from shared.fleet import registry
from shared.infra import broker, tracing
from shared.infra.tables import BatchRow, JobRow
from shared.jobs import batches, chosen_ids, idempotency, lifecycle
from shared.jobs.idempotency import Digests
from shared.jobs.lifecycle import NewJob
from shared.jobs.outbox import EventType
from shared.settings import Settings
from shared.webhooks import endpoints


def admit(
    desk: Desk,
    caller: Caller,
    submission: Submission,
    sent: Sent,
    *,
    key: str | None = None,
    job_id: UUID | None = None,
) -> JobRow:
    """Store a job and ring for it. Once this returns, the job reaches a final state even if processes fail.

    An idempotency `key` or client-chosen `job_id` that made a job from the same body before returns that job.

    Raises `InvalidRequest` for what cannot be rendered, `PriorityTooHigh`, `QueueFullForKey`, `QueueFull`, `TooManyWebhookUrls`,
    `KeyReused`, `SubmissionInFlight`, and `Unavailable` while the database or the storage is away.
    """
    began_ns = time.time_ns()
    caller.check_priority(submission.priority)
    # Before the transaction: storing pictures takes longer than a connection should be held.
    received = inputs.store_inputs(desk, caller, submission)
    digests = Digests(sent.digest, legacy_digests.of_job(submission)) if key or job_id else None
    with desk.db.transaction() as session:
        earlier = _earlier(session, caller, key, job_id, digests) if digests else None
        if earlier is not None:
            return earlier
        order = _order(session, desk, caller, submission, received, Names(session, desk.settings))
        desk.quota.admit(session, caller.owner, caller.max_queued)
        if digests and job_id:
            order = _named(session, caller, job_id, replace(order, digest=digests.legacy, sent_digest=digests.sent))
        row = _stored(session, order)
        if digests and key:
            idempotency.remember_key(session, caller.owner, key, digests, row.id)
    tracing.submitted(row.id, began_ns=began_ns, checkpoint=row.checkpoint, images=order.params.num_images)
    # After the commit: a worker that hears the doorbell must find the row.
    broker.ring(desk.celery, row.checkpoint)
    return row


def _earlier(session: Session, caller: Caller, key: str | None, job_id: UUID | None, digests: Digests) -> JobRow | None:
    """Return the job that was made under this name before. Raises as `shared.jobs.idempotency`."""
    if job_id is not None:
        return idempotency.job_of_id(session, caller.owner, job_id, digests)
    made = idempotency.job_of_key(session, caller.owner, key, digests) if key else None
    return lifecycle.get(session, made) if made else None


def _named(session: Session, caller: Caller, job_id: UUID, order: NewJob) -> NewJob:
    """Give a job the id that its client chose. Raises `KeyReused` for one who sees the other owner's job of that id."""
    stored = chosen_ids.stored(session, caller.owner, job_id)
    if stored != job_id and caller.is_admin:
        raise KeyReused(f"Job {job_id} is there already, of another owner; choose a new id for a new job.")
    return replace(order, job_id=stored, chosen_id=job_id if stored != job_id else None)


def _stored(session: Session, order: NewJob) -> JobRow:
    try:
        [row] = lifecycle.submit_all(session, [order])
    except IntegrityError as error:
        if order.job_id is None:
            raise
        # Two owners chose one id in the same moment; the next try finds the other one's.
        raise SubmissionInFlight(retry_after_s=1.0) from error
    return row


def admit_batch(desk: Desk, caller: Caller, wanted: BatchSubmission, sent: Sent, *, key: str | None = None) -> BatchRow:
    """Store all jobs of a batch or none, in one transaction, and ring for them. Raises as `admit`."""
    began_ns = time.time_ns()
    caller.check_priority(max(one.priority for one in wanted.submissions))
    received = inputs.store_all_inputs(desk, caller, wanted.submissions)
    digests = Digests(f"batch {sent.digest}", f"batch {legacy_digests.of_batch(wanted)}") if key else None
    with desk.db.transaction() as session:
        made = idempotency.job_of_key(session, caller.owner, key, digests) if key and digests else None
        if made is not None:
            return batches.get(session, made, owner=caller.owner)
        batch = _opened(session, desk, caller, wanted)
        names = Names(session, desk.settings)
        orders = [
            replace(_order(session, desk, caller, one, pictures, names), batch_id=batch.id, batch_index=index)
            for index, (one, pictures) in enumerate(zip(wanted.submissions, received, strict=True))
        ]
        desk.quota.admit(session, caller.owner, caller.max_queued, count=len(orders))
        rows = lifecycle.submit_all(session, orders)
        if key and digests:
            idempotency.remember_key(session, caller.owner, key, digests, batch.id)
    for row, order in zip(rows, orders, strict=True):
        tracing.submitted(row.id, began_ns=began_ns, checkpoint=row.checkpoint, images=order.params.num_images)
    for checkpoint, count in Counter(row.checkpoint for row in rows).items():
        broker.ring(desk.celery, checkpoint, count)
    return batch


def _opened(session: Session, desk: Desk, caller: Caller, wanted: BatchSubmission) -> BatchRow:
    webhook = wanted.webhook
    told = WebhookChoice(url=webhook.url, events=[EventType.BATCH_FINISHED], secret=webhook.secret) if webhook else None
    return batches.add(
        session,
        owner=caller.owner,
        name=wanted.name,
        total=len(wanted.submissions),
        axes=[{"parameter": name, "values": values} for name, values in wanted.axes.items()],
        endpoint_id=_receiver(session, desk, caller, told),
    )


class Names:
    """Looks up names of checkpoints and weights in one transaction, each once however many jobs of a batch share it."""

    def __init__(self, session: Session, settings: Settings) -> None:
        silent_after_s = settings.lease_seconds
        default = settings.default_checkpoint
        find = partial(registry.resolve_checkpoint, session, default=default, silent_after_s=silent_after_s)
        self.checkpoint = cache(find)
        self.weights = cache(partial(registry.resolve_weights, session, silent_after_s=silent_after_s))


def _order(
    session: Session, desk: Desk, caller: Caller, submission: Submission, received: StoredInputs, names: Names
) -> NewJob:
    """Resolve a submission into a job to store."""
    params = resolve(
        submission,
        checkpoint=names.checkpoint(submission.checkpoint),
        vae=names.weights(Kind.VAE, submission.vae) if submission.vae else None,
        find_lora=partial(names.weights, Kind.LORA),
        inputs=received,
    )
    return NewJob(
        params=params,
        max_attempts=desk.settings.max_attempts,
        owner=caller.owner,
        priority=submission.priority,
        endpoint_id=_receiver(session, desk, caller, submission.webhook),
        expires_in_s=submission.expires_in,
        timeout_s=submission.timeout or desk.settings.run_seconds or None,
    )


def _receiver(session: Session, desk: Desk, caller: Caller, webhook: WebhookChoice | None) -> UUID | None:
    """Return the id of the webhook endpoint that a submission names. Raises as `shared.webhooks.endpoints.find_or_add`."""
    if webhook is None:
        return None
    return endpoints.find_or_add(
        session,
        owner=caller.owner,
        url=webhook.url,
        events=webhook.events,
        secret=webhook.secret.get_secret_value() if webhook.secret else None,
        allow_private=desk.settings.allow_private_urls,
        most=desk.settings.max_webhook_urls,
    )
