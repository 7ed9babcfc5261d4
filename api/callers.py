"""Who calls, and what they may do. Handlers ask for the right they need and see only what belongs to their caller.

A key comes as `Authorization: Bearer KEY`, or as the password of HTTP Basic for clients that know nothing else. No key is ever
logged: what is wrong with one is said without repeating it.
"""

import hmac
from base64 import b64decode
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBasic, HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection

from api.auth.key_cache import CachedKey
from api.auth.keys import Scope, Token
from api.desk import Desk, DeskDep
from shared.errors import PriorityTooHigh, ScopeMissing, Unauthenticated
from shared.infra.db import KeyRow
from shared.vocabulary.params import MAX_PRIORITY

ANONYMOUS = "anonymous"
# The owner of what is made with FARM_ADMIN_KEY.
OPERATOR = "operator"
# Asked for while someone types, the console does so at most every 0.4 s: that must not cost the submit that comes after.
COUNTING = "/v1/prompts/tokens"
COUNTING_PER_MINUTE = 150


@dataclass(frozen=True, slots=True)
class Caller:
    """The key that a request came with, and its limits. `owner` stands on everything that it makes. None limits nothing."""

    owner: str
    scopes: frozenset[Scope] = frozenset({Scope.SUBMIT, Scope.READ})
    weight: float = 1.0
    max_priority: int = 0
    requests_per_minute: int | None = None
    max_queued: int | None = None

    @property
    def is_admin(self) -> bool:
        """Whether it sees and does everything."""
        return Scope.ADMIN in self.scopes

    @property
    def sees_only(self) -> str | None:
        """The owner whose jobs this caller may see; None for all of them."""
        return None if self.is_admin else self.owner

    def may_rank(self, priority: int) -> None:
        """Raise `PriorityTooHigh` unless its jobs may have that priority."""
        if priority > self.max_priority:
            raise PriorityTooHigh(f"This API key may submit up to priority {self.max_priority}, not {priority}.")

    def may(self, scope: Scope) -> "Caller":
        """Return the caller itself, or raise `ScopeMissing`."""
        if scope not in self.scopes and not self.is_admin:
            raise ScopeMissing(f"This needs an API key with the scope {scope.value!r}.")
        return self


_KEY = "An API key, `farm_…`."
_PASSWORD = "An API key as password; any user name will do."  # noqa: S105 - a description


class _Basic(HTTPBasic):
    """Basic for the documentation alone: it refuses nothing."""

    async def __call__(self, request: HTTPConnection) -> None:  # noqa: ARG002
        return None


async def identify(desk: Desk, authorization: str | None, path: str) -> Caller:
    """Return who sends this `Authorization` header; raise `Unauthenticated`, `RateLimited` or `DatabaseUnavailable`.

    What is asked for under the path counts against the key's rate.
    """
    if desk.settings.auth == "none":
        # A farm without keys has one caller, who owns everything and may do everything.
        return _almighty(ANONYMOUS)
    given = _given(authorization)
    if _is_operator(desk, given):
        return _almighty(OPERATOR)
    token = Token.read(given)
    if token is None:
        raise Unauthenticated("This is no API key; one looks like farm_0123456789_….")
    known = desk.keys.remembered(token)
    if known is None:
        known = await run_in_threadpool(desk.keys.fetch, token)
    caller = _holder(known)
    if caller.requests_per_minute is not None:
        await run_in_threadpool(_count, desk, caller.owner, caller.requests_per_minute, path)
    return caller


def _count(desk: Desk, owner: str, per_minute: int, path: str) -> None:
    if path == COUNTING:
        desk.throttle.take(owner, max(per_minute, COUNTING_PER_MINUTE), what="token counts")
    else:
        desk.throttle.take(owner, per_minute)


async def _caller(
    request: Request,
    desk: DeskDep,
    # What these read is read by `identify`; here they tell the documentation how to authorize.
    _key: Annotated[object, Security(HTTPBearer(auto_error=False, scheme_name="key", description=_KEY))],
    _password: Annotated[
        object, Security(_Basic(auto_error=False, scheme_name="key as password", description=_PASSWORD))
    ],
) -> Caller:
    known: Caller | None = getattr(request.state, "caller", None)
    return known or await identify(desk, request.headers.get("Authorization"), request.url.path)


def _given(authorization: str | None) -> str:
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


def _almighty(owner: str) -> Caller:
    return Caller(owner, frozenset(Scope), max_priority=MAX_PRIORITY)


def _is_operator(desk: Desk, given: str) -> bool:
    key = desk.settings.admin_key
    return key is not None and hmac.compare_digest(given.encode(), key.get_secret_value().encode())


def _holder(known: CachedKey) -> Caller:
    row = known.row
    if row is None or known.asked_at is None:
        raise Unauthenticated("This API key is not known here.")
    if row.revoked_at is not None:
        raise Unauthenticated("This API key was revoked.")
    if row.expires_at is not None and row.expires_at <= known.asked_at:
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
    """Return the caller, who may submit and cancel."""
    return caller.may(Scope.SUBMIT)


async def reader(caller: _Caller) -> Caller:
    """Return the caller, who may look."""
    return caller.may(Scope.READ)


async def admin(caller: _Caller) -> Caller:
    """Return the caller, who may do everything."""
    return caller.may(Scope.ADMIN)


Submitter = Annotated[Caller, Depends(submitter)]
Reader = Annotated[Caller, Depends(reader)]
Admin = Annotated[Caller, Depends(admin)]
