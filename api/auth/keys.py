"""API keys: how a token is made and read, and the acts on the `keys` table. Who may call them is decided in `api.callers`.

A secret is 256 random bits, so one round of SHA-256 keeps it: slow hashes protect what people choose and others can guess.
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
from shared.infra.db import KeyRow
from shared.vocabulary.params import MAX_PRIORITY, MIN_PRIORITY, reject_nul

USED_WITHIN = timedelta(minutes=1)
_PREFIX_BYTES, _SECRET_BYTES = 5, 32
_TOKEN = re.compile(r"farm_([0-9a-f]{10})_([A-Za-z0-9_-]{43})")


class Scope(StrEnum):
    """What a key may do: submit and cancel jobs, see its own, or everything."""

    SUBMIT = "submit"
    READ = "read"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Token:
    """What a client sends: a prefix by which its key is found, and the secret."""

    prefix: str
    secret: str = field(repr=False)

    @classmethod
    def drawn(cls) -> "Token":
        """Draw a new one."""
        return cls(secrets.token_hex(_PREFIX_BYTES), secrets.token_urlsafe(_SECRET_BYTES))

    @classmethod
    def read(cls, text: str) -> "Token | None":
        """Read one; None for what has never been a token."""
        match = _TOKEN.fullmatch(text)
        return cls(match[1], match[2]) if match else None

    @property
    def text(self) -> str:
        """What the client is given, once."""
        return f"farm_{self.prefix}_{self.secret}"

    @property
    def digest(self) -> bytes:
        """What the table keeps."""
        return sha256(self.secret.encode()).digest()

    def opens(self, row: KeyRow) -> bool:
        """Whether this is that key's token; takes the same time whatever differs."""
        return hmac.compare_digest(self.digest, row.hash)


class KeyLimits(BaseModel):
    """What a key may use. Null limits nothing."""

    model_config = ConfigDict(extra="forbid")

    weight: Annotated[float, Field(gt=0, le=1000, description="Its share of the GPUs, against other keys'.")] = 1.0
    max_priority: Annotated[
        int, Field(ge=MIN_PRIORITY, le=MAX_PRIORITY, description="The highest priority of its jobs.")
    ] = 0
    requests_per_minute: Annotated[
        int | None,
        Field(
            ge=1,
            le=1_000_000,
            description="Up to a minute's at once. Token counts have a rate of their own: the same, but at least 150.",
        ),
    ] = None
    max_queued: Annotated[int | None, Field(ge=1, le=10_000_000, description="Jobs waiting at once.")] = None
    max_running: Annotated[int | None, Field(ge=1, le=100_000, description="Jobs rendered at once.")] = None
    paused: Annotated[bool, Field(description="Its queued jobs wait.")] = False


class NewKey(KeyLimits):
    """A key to create."""

    name: Annotated[str, Field(min_length=1, max_length=100, description="Whose it is."), AfterValidator(reject_nul)]
    scopes: Annotated[frozenset[Scope], Field(min_length=1)] = frozenset({Scope.SUBMIT, Scope.READ})
    expires_in: Annotated[
        int | None, Field(ge=1, le=10 * 366 * 86400, description="Seconds from now; null: never.")
    ] = None


def create(session: Session, wanted: NewKey) -> tuple[KeyRow, Token]:
    """Create a key. The token cannot be had again."""
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
    """List every key, also those revoked, oldest first."""
    return session.scalars(select(KeyRow).order_by(KeyRow.created_at, KeyRow.id)).all()


def change(session: Session, key_id: str, limits: KeyLimits) -> KeyRow:
    """Set those limits that are given; raise `KeyNotFound`."""
    row = _get(session, key_id)
    for name in limits.model_fields_set:
        setattr(row, name, getattr(limits, name))
    return row


def revoke(session: Session, key_id: str) -> KeyRow:
    """End a key for good; again is fine. Its jobs stay. Raise `KeyNotFound`."""
    row = _get(session, key_id)
    if row.revoked_at is None:
        row.revoked_at = func.now()
        session.flush()
        session.refresh(row)
    return row


def find(session: Session, token: Token) -> tuple[KeyRow, datetime] | None:
    """Return the key that a token opens and the database's time, and note that it was used; None where there is none."""
    found = session.execute(select(KeyRow, func.now()).where(KeyRow.prefix == token.prefix)).one_or_none()
    if found is None or not token.opens(found[0]):
        return None
    stale = or_(KeyRow.last_used_at.is_(None), KeyRow.last_used_at < func.now() - USED_WITHIN)
    touch = update(KeyRow).where(KeyRow.id == found[0].id, stale).values(last_used_at=func.now())
    session.execute(touch.execution_options(synchronize_session=False))
    return found[0], found[1]


def any_live(session: Session) -> bool:
    """Whether any key could be used now."""
    live = or_(KeyRow.expires_at.is_(None), KeyRow.expires_at > func.now())
    return session.execute(select(KeyRow.id).where(KeyRow.revoked_at.is_(None), live).limit(1)).first() is not None


def _get(session: Session, key_id: str) -> KeyRow:
    row = session.get(KeyRow, key_id) if "\0" not in key_id else None
    if row is None:
        raise KeyNotFound(f"There is no API key with the id {key_id[:64]!r}.")
    return row
