"""JSON bodies: bounded before they are parsed, validated beside the event loop, let go of once their handler has answered."""

import json
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from api.annex import json_text
from api.annex.json_text import LIGHT_BYTES, MAX_MEMBERS, Absurd
from api.annex.process import Annex
from api.callers import Caller
from api.desk import Desk
from api.limits.owners import NOBODY
from shared.errors import FarmError

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


@dataclass(frozen=True, slots=True)
class Body:
    """A body as plain JSON, and as the model that the route asks for. Of a heavy one its large strings and digest are known."""

    plain: Any
    validated: Any
    large: Sequence[str] = ()
    digest: str | None = None


class Held(Response):
    """An answer that is still to be waited for, when the request's body is gone; `kept_bytes` of it are kept for the answer."""

    def __init__(self, wait: Callable[[Request], Awaitable[Response]], *, kept_bytes: int = 0) -> None:
        super().__init__()
        self._wait = wait
        self.kept_bytes = kept_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait, then send the answer."""
        answer = await self._wait(Request(scope, receive))
        await answer(scope, receive, send)


class JsonRoute(APIRoute):
    """A route that reads its body by `JsonRequest`, and gives the body's memory back once the handler has returned."""

    def get_route_handler(self) -> Handler:
        """Return the route's handler, between reading and giving back."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                # Nothing but the frames below holds the body.
                response = await handle(JsonRequest(request.scope, request.receive, self.body_field))
            except _Refused as refused:
                raise refused.error from None
            # Of `Held` and `LargeAnswer`.
            request.state.body.keep(getattr(response, "kept_bytes", 0))
            return response

        return handler


class JsonRequest(Request):
    """A request whose `json()` is the validated body. FastAPI validates it once more, which takes no time."""

    def __init__(self, scope: Scope, receive: Receive, field: Any) -> None:
        super().__init__(scope, receive)
        self._field = field
        self.parsed: Body | None = None

    async def json(self) -> Any:
        """Return the body as the model that the route asks for; `parsed` also has the JSON that it came as."""
        raw = await self.body()
        try:
            self.parsed = await self._beside(raw) if self._is_heavy(raw) else _read(raw, self._field)
        except (FarmError, RequestValidationError) as error:
            raise _Refused(error) from None
        return self.parsed.validated

    async def _beside(self, raw: bytes) -> Body:
        desk: Desk = self.app.state.desk
        caller: Caller | None = getattr(self.state, "caller", None)
        owner = caller.owner if caller else NOBODY
        return await desk.rooms.bodies.run(owner, partial(_judged, desk.annex, raw, self._field))

    def _is_heavy(self, raw: bytes) -> bool:
        expands = getattr(self._field.field_info.annotation, "EXPANDS", False)
        return expands or len(raw) > LIGHT_BYTES or sum(map(raw.count, (b",", b"[", b"{"))) > MAX_MEMBERS


class _Refused(HTTPException):
    """Carries an error through FastAPI, which lets no other kind out of a body that it reads."""

    def __init__(self, error: Exception) -> None:
        super().__init__(422)
        self.error = error


def _read(raw: bytes, field: Any) -> Body:
    """Return a body that is light. Raises `RequestValidationError`, `ValueError`."""
    try:
        plain = json_text.parsed(raw)
    except Absurd as error:
        raise _absurd(str(error)) from None
    return Body(plain, _validated(plain, field))


def _judged(annex: Annex, raw: bytes, field: Any) -> Body:
    """Return a body that is heavy, once the annex has found it fit. Raises as `_read`."""
    found = annex.do("judge_json", raw).about
    if "absurd" in found:
        raise _absurd(found["absurd"])
    if "wrong" in found:
        raise _wrong(found["wrong"])
    plain, large = json_text.whole(raw, found["places"])
    return Body(plain, _validated(plain, field), large, found["digest"])


def _validated(plain: Any, field: Any) -> Any:
    validated, faults = field.validate(plain, {}, loc=("body",))
    if faults:
        raise RequestValidationError(faults)
    return validated


def _wrong(how: Sequence[Any] | None) -> ValueError:
    """Return the error of what is no JSON, and where; or of what cannot be read at all."""
    return json.JSONDecodeError(how[0], "", how[1]) if how else ValueError("not readable")


def _absurd(message: str) -> RequestValidationError:
    return RequestValidationError([{"type": "too_long", "loc": ("body",), "msg": message}])
