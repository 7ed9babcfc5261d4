"""Manage API keys, for admins. Only the answer to a key's creation contains its token."""

from datetime import datetime
from typing import Annotated

from fastapi import Depends
from pydantic import BaseModel, Field

from api.auth import keys
from api.auth.keys import KeyLimits, NewKey, Scope
from api.callers import Caller, Reader, admin
from api.desk import DeskDep
from api.openapi import documented
from api.routing import Router
from shared.infra.tables import KeyRow

router = Router(prefix="/v1/keys", tags=["keys"], responses=documented(401, 403, 422, 429, 503))
for_admins = [Depends(admin)]


class Key(BaseModel):
    """An API key; its secret is not stored. A limit of null is no limit."""

    id: str
    name: str
    prefix: Annotated[str, Field(description="The first part of the token, by which to recognise the key.")]
    scopes: list[Scope]
    weight: Annotated[float, Field(description="Share of the GPUs, relative to other keys.")]
    max_priority: Annotated[int, Field(description="The highest priority that its jobs may have.")]
    requests_per_minute: Annotated[int | None, Field(description="May all come at once.")]
    max_queued: Annotated[int | None, Field(description="How many of its jobs may wait in the queue.")]
    max_running: Annotated[int | None, Field(description="How many of its jobs may run at the same time.")]
    paused: Annotated[bool, Field(description="While true, its queued jobs do not start.")]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    @classmethod
    def of(cls, row: KeyRow) -> "Key":
        """Show a row."""
        return cls.model_validate(row, from_attributes=True)


class IssuedKey(Key):
    """A key that was just created. Clients send `token`; it cannot be shown again."""

    token: str


class Keys(BaseModel):
    """All keys, revoked ones too, oldest first."""

    keys: list[Key]


class Me(BaseModel):
    """The key that this request was sent with, and its limits. `owner` is the key's id, or `anonymous` without keys."""

    owner: str
    scopes: list[Scope]
    weight: float
    max_priority: int
    requests_per_minute: int | None
    max_queued: int | None


@router.post("", status_code=201, summary="Create a key", dependencies=for_admins, responses=documented(400))
def create(wanted: NewKey, desk: DeskDep) -> IssuedKey:
    """Create a key. Only this answer contains its token."""
    with desk.db.transaction() as session:
        row, token = keys.create(session, wanted)
    return IssuedKey(**Key.of(row).model_dump(), token=token.text)


@router.get("", summary="List keys", dependencies=for_admins)
def listing(desk: DeskDep) -> Keys:
    """List all keys."""
    with desk.db.transaction() as session:
        return Keys(keys=[Key.of(row) for row in keys.listing(session)])


@router.get("/me", summary="Show your key")
async def me(caller: Reader) -> Me:
    """Show the key that this request was sent with, and its limits."""
    return _me(caller)


@router.patch("/{key_id}", summary="Change a key's limits", dependencies=for_admins, responses=documented(400, 404))
def change(key_id: str, limits: KeyLimits, desk: DeskDep) -> Key:
    """Change the limits that the body contains. They take effect within seconds."""
    with desk.db.transaction() as session:
        row = keys.change(session, key_id, limits)
    return Key.of(row)


@router.delete("/{key_id}", summary="Revoke a key", dependencies=for_admins, responses=documented(404))
def revoke(key_id: str, desk: DeskDep) -> Key:
    """Revoke a key for good. Every api process refuses it within five seconds; its jobs go on."""
    with desk.db.transaction() as session:
        row = keys.revoke(session, key_id)
    return Key.of(row)


def _me(caller: Caller) -> Me:
    return Me(
        owner=caller.owner,
        scopes=sorted(caller.scopes),
        weight=caller.weight,
        max_priority=caller.max_priority,
        requests_per_minute=caller.requests_per_minute,
        max_queued=caller.max_queued,
    )
