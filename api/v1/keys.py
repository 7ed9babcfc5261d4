"""API keys over HTTP, for admins. A token is in the answer to its creation and nowhere else, ever."""

from datetime import datetime

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from api.auth import keys
from api.auth.keys import KeyLimits, NewKey, Scope
from api.callers import Caller, Reader, admin
from api.desk import DeskDep
from api.problems import documented
from shared.infra.db import KeyRow

router = APIRouter(prefix="/v1/keys", tags=["keys"], responses=documented(401, 403, 422, 429, 503))
for_admins = [Depends(admin)]


class Key(BaseModel):
    """A key as it is now; its secret is not kept. Null limits nothing."""

    id: str
    name: str
    prefix: str
    scopes: list[Scope]
    weight: float
    max_priority: int
    requests_per_minute: int | None
    max_queued: int | None
    max_running: int | None
    paused: bool
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    @classmethod
    def of(cls, row: KeyRow) -> "Key":
        """Show a row."""
        return cls.model_validate(row, from_attributes=True)


class IssuedKey(Key):
    """A key that was just created. `token` is what clients send; it cannot be shown again."""

    token: str


class Keys(BaseModel):
    """Every key, oldest first, also those revoked."""

    keys: list[Key]


class Me(BaseModel):
    """The caller, as the farm knows it."""

    owner: str
    scopes: list[Scope]
    weight: float
    max_priority: int
    requests_per_minute: int | None
    max_queued: int | None


@router.post("", status_code=201, summary="Create a key", dependencies=for_admins, responses=documented(400))
def create(wanted: NewKey, desk: DeskDep) -> IssuedKey:
    """Create a key. Its token is shown in this answer only."""
    with desk.db.transaction() as session:
        row, token = keys.create(session, wanted)
    return IssuedKey(**Key.of(row).model_dump(), token=token.text)


@router.get("", summary="List keys", dependencies=for_admins)
def listing(desk: DeskDep) -> Keys:
    """List every key."""
    with desk.db.transaction() as session:
        return Keys(keys=[Key.of(row) for row in keys.listing(session)])


@router.get("/me", summary="Show the caller")
async def me(caller: Reader) -> Me:
    """Show whose key this request came with and what it may use."""
    return _me(caller)


@router.patch("/{key_id}", summary="Change limits", dependencies=for_admins, responses=documented(400, 404))
def change(key_id: str, limits: KeyLimits, desk: DeskDep) -> Key:
    """Change those limits that the body names. They act within seconds."""
    with desk.db.transaction() as session:
        row = keys.change(session, key_id, limits)
    return Key.of(row)


@router.delete("/{key_id}", summary="Revoke a key", dependencies=for_admins, responses=documented(404))
def revoke(key_id: str, desk: DeskDep) -> Key:
    """Revoke a key for good; every api process refuses it within five seconds. Its jobs stay and go on."""
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
