"""Authentication and authorization: who calls, with which scopes. Handlers depend on `Reader`, `Submitter` or `Admin`.

An API key comes as `Authorization: Bearer KEY`, or as the password of HTTP Basic for clients that support nothing else. Keys are
never logged, and error messages do not repeat them.
"""

import hmac
from base64 import b64decode
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBasic, HTTPBearer
from starlette.requests import HTTPConnection
from starlette.types import Scope as Connection

from api.auth.key_cache import CachedKey
from api.auth.keys import Scope, Token
from api.desk import Desk, DeskDep
from api.limits.owners import ANONYMOUS
from api.limits.rate import TOKEN_COUNTS
from shared.errors import PriorityTooHigh, ScopeMissing, Unauthenticated
from shared.infra.tables import KeyRow
from shared.vocabulary.params import MAX_PRIORITY

# The owner of jobs submitted with FARM_ADMIN_KEY.
OPERATOR = "operator"
# Asked for while someone types, the console does so at most every 0.4 s: that must not cost the submit that comes after.
COUNTING = "/v1/prompts/tokens"
COUNTING_PER_MINUTE = 150


@dataclass(frozen=True, slots=True)
class Caller:
    """The API key of a request: its owner id, scopes and limits. A limit of None is no limit."""

    owner: str
    scopes: frozenset[Scope] = frozenset({Scope.SUBMIT, Scope.READ})
    weight: float = 1.0
    max_priority: int = 0
    requests_per_minute: int | None = None
    max_queued: int | None = None

    @property
    def is_admin(self) -> bool:
        """Whether the key has the scope admin, which includes all others."""
        return Scope.ADMIN in self.scopes

    @property
    def sees_only(self) -> str | None:
        """The owner whose jobs this caller may see; None for all of them."""
        return None if self.is_admin else self.owner

    def check_priority(self, priority: int) -> None:
        """Raise `PriorityTooHigh` if the key's jobs may not have this priority."""
        if priority > self.max_priority:
            raise PriorityTooHigh(f"This API key allows priorities up to {self.max_priority}, not {priority}.")

    def require(self, scope: Scope) -> "Caller":
        """Return the caller itself. Raises `ScopeMissing`."""
        if scope not in self.scopes and not self.is_admin:
            raise ScopeMissing(f"This request needs an API key with the scope {scope.value!r}.")
        return self


_KEY = "An API key, `farm_…`."
_PASSWORD = "An API key as the password; the user name is ignored."  # noqa: S105 - a description


class _Basic(HTTPBasic):
    """HTTP Basic, for the OpenAPI document only: refuses nothing."""

    async def __call__(self, request: HTTPConnection) -> None:  # noqa: ARG002
        return None


async def identify(desk: Desk, authorization: str | None, path: str) -> Caller:
    """Return the caller of an `Authorization` header, and count the request against the rate limit of its key.

    Raises `Unauthenticated`, `RateLimited`, `DatabaseUnavailable` or `TooBusy`.
    """
    if desk.settings.auth == "none":
        # A farm without keys has one caller, who owns everything and may do everything.
        return _unlimited(ANONYMOUS)
    credentials = _credentials(authorization)
    if _is_operator(desk, credentials):
        return _unlimited(OPERATOR)
    token = Token.read(credentials)
    if token is None:
        raise Unauthenticated("The API key is malformed; one looks like farm_0123456789_….")
    cached = desk.keys.remembered(token)
    if cached is None:
        cached = await desk.rooms.keys.run(desk.keys.owner_of(token), desk.keys.fetch, token)
    caller = _valid_caller(cached)
    if caller.requests_per_minute is not None:
        await _count(desk, caller.owner, caller.requests_per_minute, path)
    return caller


def sharer(scope: Connection) -> str:
    """Return whose share of the api's memory a request takes: that of its key's owner, without keys of its address."""
    caller: Caller | None = scope.get("state", {}).get("caller")
    if caller is not None and caller.owner != ANONYMOUS:
        return caller.owner
    client = scope.get("client")
    return f"{ANONYMOUS}@{client[0] if client else 'unknown'}"


async def _count(desk: Desk, owner: str, per_minute: int, path: str) -> None:
    if path == COUNTING:
        await desk.throttle.take(owner, max(per_minute, COUNTING_PER_MINUTE), TOKEN_COUNTS)
    else:
        await desk.throttle.take(owner, per_minute)


async def _caller(
    request: Request,
    desk: DeskDep,
    # What these read is read by `identify`; here they tell the documentation how to authorize.
    _key: Annotated[object, Security(HTTPBearer(auto_error=False, scheme_name="key", description=_KEY))],
    _password: Annotated[
        object, Security(_Basic(auto_error=False, scheme_name="keyAsPassword", description=_PASSWORD))
    ],
) -> Caller:
    identified: Caller | None = getattr(request.state, "caller", None)
    return identified or await identify(desk, request.headers.get("Authorization"), request.url.path)


def _credentials(authorization: str | None) -> str:
    scheme, _, value = (authorization or "").strip().partition(" ")
    if scheme.lower() == "bearer" and value:
        return value.strip()
    if scheme.lower() == "basic":
        try:
            _user, colon, password = b64decode(value, validate=True).decode().partition(":")
        except ValueError:
            colon, password = "", ""
        if colon:
            return password
    raise Unauthenticated


def _unlimited(owner: str) -> Caller:
    return Caller(owner, frozenset(Scope), max_priority=MAX_PRIORITY)


def _is_operator(desk: Desk, credentials: str) -> bool:
    key = desk.settings.admin_key
    return key is not None and hmac.compare_digest(credentials.encode(), key.get_secret_value().encode())


def _valid_caller(cached: CachedKey) -> Caller:
    row = cached.row
    if row is None or cached.asked_at is None:
        raise Unauthenticated("This API key does not exist on this farm.")
    if row.revoked_at is not None:
        raise Unauthenticated("This API key was revoked.")
    if row.expires_at is not None and row.expires_at <= cached.asked_at:
        raise Unauthenticated("This API key has expired.")
    return _caller_of(row)


def _caller_of(row: KeyRow) -> Caller:
    return Caller(
        owner=row.id,
        scopes=frozenset(Scope(scope) for scope in row.scopes),
        weight=row.weight,
        max_priority=row.max_priority,
        requests_per_minute=row.requests_per_minute,
        max_queued=row.max_queued,
    )


_Caller = Annotated[Caller, Depends(_caller)]


async def submitter(caller: _Caller) -> Caller:
    """Require the scope submit."""
    return caller.require(Scope.SUBMIT)


async def reader(caller: _Caller) -> Caller:
    """Require the scope read."""
    return caller.require(Scope.READ)


async def admin(caller: _Caller) -> Caller:
    """Require the scope admin."""
    return caller.require(Scope.ADMIN)


Submitter = Annotated[Caller, Depends(submitter)]
Reader = Annotated[Caller, Depends(reader)]
Admin = Annotated[Caller, Depends(admin)]
