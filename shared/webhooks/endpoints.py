"""Webhook endpoints and their secrets.

An owner registers an endpoint for all jobs, or a job names one; jobs that name the same share one row and its state. Secrets are
Standard Webhooks' `whsec_…`; during a rotation the old and the new one both sign.
"""

import base64
import binascii
import hashlib
import secrets
from collections.abc import Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.errors import EndpointNotFound, InvalidRequest, TooManyEndpoints
from shared.infra import url_guard
from shared.infra.tables import DeliveryRow, EndpointRow, OwnerSecretRow
from shared.webhooks import named

MAX_REGISTERED = 20  # per owner; every event is written once for each that hears it
SECRET_PREFIX = "whsec_"  # noqa: S105 - what every secret begins with, by the standard
SECRET_BYTES = (24, 64)


class EndpointState(StrEnum):
    """Whether an endpoint gets its webhooks. Deliveries to one that is paused or suspended wait."""

    ACTIVE = "active"
    # By its owner's wish, who resumes it.
    PAUSED = "paused"
    # After long failure. Probed now and then; the first success, or its owner, resumes it.
    SUSPENDED = "suspended"
    # It answered 410: nothing more is written for it until its owner resumes it.
    GONE = "gone"


def register(
    session: Session, *, owner: str, url: str, events: Sequence[str], secret: str | None, allow_private: bool
) -> EndpointRow:
    """Register an endpoint for all jobs of an owner. Raises `BlockedUrl`, `InvalidRequest`, `TooManyEndpoints`."""
    row = EndpointRow(
        id=uuid4(),
        owner=owner,
        url=url,
        origin=url_guard.parse(url, allow_private=allow_private).origin,
        events=sorted(set(events)),
        registered=True,
        state=EndpointState.ACTIVE,
        secret=checked_secret(secret) if secret else new_secret(),
    )
    if len(listing(session, owner=owner)) >= MAX_REGISTERED:
        raise TooManyEndpoints(
            f"The limit of {MAX_REGISTERED} webhook endpoints is reached; delete one, or subscribe one to more events."
        )
    session.add(row)
    session.flush()
    session.refresh(row)
    return row


def find_or_add(
    session: Session, *, owner: str, url: str, events: Sequence[str], secret: str | None, allow_private: bool, most: int
) -> UUID:
    """Return the id of the endpoint that a job names; add it unless an earlier job named the same.

    Raises `BlockedUrl`, `InvalidRequest`, and `TooManyWebhookUrls` when the owner's jobs name `most` others (`named`).
    """
    origin = url_guard.parse(url, allow_private=allow_private).origin
    hears = sorted(set(events))
    key = checked_secret(secret) if secret else None
    told_apart = "\0".join([owner, url, *hears, key or ""]).encode()
    endpoint_id = UUID(bytes=hashlib.sha256(told_apart).digest()[:16])
    # Looked up first: an upsert would lock the row until the job is stored, one job at a time.
    fresh = EndpointRow.used_at > func.now() - timedelta(days=1)
    if session.scalar(select(EndpointRow.id).where(EndpointRow.id == endpoint_id, fresh)) is None:
        named.make_room(session, owner, most=most)
        session.execute(
            insert(EndpointRow)
            .values(id=endpoint_id, owner=owner, url=url, origin=origin, events=hears, registered=False, secret=key)
            .on_conflict_do_update(index_elements=[EndpointRow.id], set_={"used_at": func.now()})
        )
    return endpoint_id


def get(session: Session, endpoint_id: UUID, *, owner: str | None) -> EndpointRow:
    """Lock and return an endpoint. Raises `EndpointNotFound`, also for one of another owner."""
    row = session.get(EndpointRow, endpoint_id, with_for_update=True, populate_existing=True)
    if row is None or owner not in {None, row.owner}:
        raise EndpointNotFound(f"There is no webhook endpoint {endpoint_id}.")
    return row


def listing(session: Session, *, owner: str | None) -> Sequence[EndpointRow]:
    """Return the registered endpoints of an owner, or of all, oldest first."""
    query = select(EndpointRow).where(EndpointRow.registered).order_by(EndpointRow.created_at, EndpointRow.id)
    return session.scalars(query if owner is None else query.where(EndpointRow.owner == owner)).all()


def pause(row: EndpointRow) -> None:
    """Hold back an endpoint's deliveries until it is resumed."""
    row.state = EndpointState.PAUSED


def resume(session: Session, row: EndpointRow) -> None:
    """Activate an endpoint and make its waiting deliveries due now."""
    row.state, row.failing_since, row.hold_until = EndpointState.ACTIVE, None, None
    session.flush()
    release(session, row.id)


def release(session: Session, endpoint_id: UUID) -> None:
    """Make all waiting deliveries of an endpoint due now, whatever their backoff."""
    session.execute(
        update(DeliveryRow)
        .where(DeliveryRow.endpoint_id == endpoint_id, DeliveryRow.state == "pending", DeliveryRow.next_at > func.now())
        .values(next_at=func.now())
        .execution_options(synchronize_session=False)
    )


def rotate(row: EndpointRow | OwnerSecretRow, *, overlap_s: float, secret: str | None = None) -> str:
    """Replace a secret and return the new one. For `overlap_s` seconds the old one signs as well."""
    row.old_secret = row.secret if overlap_s > 0 else None
    row.old_secret_until = _after(overlap_s)
    row.secret = checked_secret(secret) if secret else new_secret()
    return row.secret


def owner_secret(session: Session, owner: str) -> OwnerSecretRow:
    """Return the owner's secret, which signs where an endpoint has none; create it at the first call."""
    row = session.get(OwnerSecretRow, owner, populate_existing=True)
    if row is None:
        session.execute(insert(OwnerSecretRow).values(owner=owner, secret=new_secret()).on_conflict_do_nothing())
        row = session.get_one(OwnerSecretRow, owner)
    return row


def new_secret() -> str:
    """Return a secret of 256 random bits."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def checked_secret(secret: str) -> str:
    """Return a valid secret unchanged. Raises `InvalidRequest`, without repeating it."""
    least, most = SECRET_BYTES
    try:
        size = len(base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True))
    except (binascii.Error, ValueError):
        size = 0
    if not secret.startswith(SECRET_PREFIX) or not least <= size <= most:
        raise InvalidRequest(f"secret: must be {SECRET_PREFIX} followed by {least} to {most} random bytes in base64.")
    return secret


def _after(seconds: float) -> Any:
    return func.now() + timedelta(seconds=seconds)
