"""API keys: tokens, limits, and the `keys` table. `api.callers` decides who may change it.

A secret is 256 random bits, so one round of SHA-256 is enough: slow hashes protect passwords, which can be guessed.
"""

import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

from shared.errors import KeyNotFound
from shared.infra.tables import KeyRow
from shared.vocabulary.params import MAX_PRIORITY, MIN_PRIORITY, reject_nul

USED_WITHIN = timedelta(minutes=1)
_PREFIX_BYTES, _SECRET_BYTES = 5, 32
_TOKEN = re.compile(r"farm_([0-9a-f]{10})_([A-Za-z0-9_-]{43})")


class Scope(StrEnum):
    """Right of a key: submit and cancel jobs, read its own jobs, or administer the farm."""

    SUBMIT = "submit"
    READ = "read"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Token:
    """API key as a client sends it: a prefix that identifies the row, and the secret."""

    prefix: str
    secret: str = field(repr=False)

    @classmethod
    def drawn(cls) -> "Token":
        """Generate a new token."""
        return cls(secrets.token_hex(_PREFIX_BYTES), secrets.token_urlsafe(_SECRET_BYTES))

    @classmethod
    def read(cls, text: str) -> "Token | None":
        """Parse a token; None for a malformed one."""
        match = _TOKEN.fullmatch(text)
        return cls(match[1], match[2]) if match else None

    @property
    def text(self) -> str:
        """The token as text, `farm_PREFIX_SECRET`."""
        return f"farm_{self.prefix}_{self.secret}"

    @property
    def digest(self) -> bytes:
        """SHA-256 of the secret, as the table stores it."""
        return sha256(self.secret.encode()).digest()

    def opens(self, row: KeyRow) -> bool:
        """Whether this token belongs to the row. Compares in constant time."""
        return hmac.compare_digest(self.digest, row.hash)


class KeyLimits(BaseModel):
    """Limits of a key. Null is no limit."""

    model_config = ConfigDict(extra="forbid")

    weight: Annotated[float, Field(gt=0, le=1000, description="Share of the GPUs, relative to other keys.")] = 1.0
    max_priority: Annotated[
        int, Field(ge=MIN_PRIORITY, le=MAX_PRIORITY, description="The highest priority that its jobs may have.")
    ] = 0
    requests_per_minute: Annotated[
        int | None,
        Field(
            ge=1,
            le=1_000_000,
            description="May all come at once. One that takes more than 0.1 s of a processor counts as several. "
            "Token counts have a separate limit of the same size, but at least 150.",
        ),
    ] = None
    max_queued: Annotated[
        int | None, Field(ge=1, le=10_000_000, description="How many of its jobs may wait in the queue.")
    ] = None
    max_running: Annotated[
        int | None, Field(ge=1, le=100_000, description="How many of its jobs may run at the same time.")
    ] = None
    paused: Annotated[bool, Field(description="While true, its queued jobs do not start.")] = False


class NewKey(KeyLimits):
    """A key to create."""

    name: Annotated[
        str, Field(min_length=1, max_length=100, description="Who uses the key."), AfterValidator(reject_nul)
    ]
    scopes: Annotated[frozenset[Scope], Field(min_length=1, description="`admin` includes the others.")] = frozenset(
        {Scope.SUBMIT, Scope.READ}
    )
    expires_in: Annotated[
        int | None, Field(ge=1, le=10 * 366 * 86400, description="Seconds until the key expires; null: never.")
    ] = None


def create(session: Session, wanted: NewKey) -> tuple[KeyRow, Token]:
    """Create a key and return its row and token. The token is not stored."""
    token = Token.drawn()
    lifetime = None if wanted.expires_in is None else timedelta(seconds=wanted.expires_in)
    row = KeyRow(
        id=str(uuid7()),
        prefix=token.prefix,
        hash=token.digest,
        expires_at=None if lifetime is None else func.now() + lifetime,
        **wanted.model_dump(exclude={"expires_in", "scopes"}),
        scopes=sorted(wanted.scopes),
    )
    session.add(row)
    session.flush()
    session.refresh(row)
    return row, token


def listing(session: Session) -> Sequence[KeyRow]:
    """List all keys, revoked ones too, oldest first."""
    return session.scalars(select(KeyRow).order_by(KeyRow.created_at, KeyRow.id)).all()


def change(session: Session, key_id: str, limits: KeyLimits) -> KeyRow:
    """Change the limits that are set. Raises `KeyNotFound`."""
    row = _get(session, key_id)
    for name in limits.model_fields_set:
        setattr(row, name, getattr(limits, name))
    return row


def revoke(session: Session, key_id: str) -> KeyRow:
    """Revoke a key for good; its jobs go on. Idempotent. Raises `KeyNotFound`."""
    row = _get(session, key_id)
    if row.revoked_at is None:
        row.revoked_at = func.now()
        session.flush()
        session.refresh(row)
    return row


def find(session: Session, token: Token) -> tuple[KeyRow, datetime] | None:
    """Return the key of a token and the database's time, and record the use; None for an unknown token."""
    match = session.execute(select(KeyRow, func.now()).where(KeyRow.prefix == token.prefix)).one_or_none()
    if match is None or not token.opens(match[0]):
        return None
    stale = or_(KeyRow.last_used_at.is_(None), KeyRow.last_used_at < func.now() - USED_WITHIN)
    touch = update(KeyRow).where(KeyRow.id == match[0].id, stale).values(last_used_at=func.now())
    session.execute(touch.execution_options(synchronize_session=False))
    return match[0], match[1]


def _get(session: Session, key_id: str) -> KeyRow:
    row = session.get(KeyRow, key_id) if "\0" not in key_id else None
    if row is None:
        raise KeyNotFound(f"There is no API key with the id {key_id[:64]!r}.")
    return row
