"""The router of every module with routes: a handler that blocks runs on a thread of a room, and of no other.

`async` handlers share the event loop and take what blocks to a room by themselves: `await desk.rooms.storage.run(…)`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request

from api.callers import Caller
from api.desk import DeskDep
from api.json_bodies import JsonRoute
from api.limits.owners import NOBODY
from api.limits.workrooms import Workroom, Workrooms

Handler = TypeVar("Handler", bound=Callable[..., Any])

# The room of handlers that name none.
USUAL = "database"


def in_room(name: str) -> Callable[[Handler], Handler]:
    """Have a blocking handler run in this room. Put it below the decorator of the route."""

    def named(handler: Handler) -> Handler:
        handler.room = name  # type: ignore[attr-defined]  # functions take attributes
        return handler

    return named


class SeatedRoute(JsonRoute):
    """A route that reads bodies beside the loop, and whose handler, if it blocks, takes a place in its room for the caller."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **how: Any) -> None:
        super().__init__(path, _seated(endpoint), **how)


class Router(APIRouter):
    """A router of seated routes."""

    def __init__(self, **how: Any) -> None:
        super().__init__(route_class=SeatedRoute, **how)


@dataclass(frozen=True, slots=True)
class _Seat:
    rooms: Workrooms
    owner: str


async def _seat(request: Request, desk: DeskDep) -> _Seat:
    caller: Caller | None = getattr(request.state, "caller", None)
    return _Seat(desk.rooms, caller.owner if caller else NOBODY)


def _seated(handler: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(handler) or inspect.isasyncgenfunction(handler):
        return handler
    name = getattr(handler, "room", USUAL)

    @wraps(handler)
    async def seated(_seat: _Seat, **given: Any) -> Any:
        room: Workroom = getattr(_seat.rooms, name)
        return await room.run(_seat.owner, handler, **given)

    signature = inspect.signature(handler)
    place = inspect.Parameter("_seat", inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[_Seat, Depends(_seat)])
    seated.__signature__ = signature.replace(parameters=[*signature.parameters.values(), place])  # type: ignore[attr-defined]
    return seated
