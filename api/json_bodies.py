"""JSON bodies: bounded before they are parsed, validated beside the event loop, let go of once their handler has answered."""

import json
import re
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from api.callers import Caller
from api.desk import Desk
from api.limits.workrooms import NOBODY
from shared.errors import FarmError

# Members of one object. Clients of A1111 send back all its options, some hundreds.
MAX_MEMBERS = 1_000
# Values of a body, members and elements alike: a batch of 1,000 jobs that name every parameter has fewer.
MAX_VALUES = 100_000
# Of an integer in a body that is not light: its conversion takes the square of its digits.
MAX_DIGITS = 400
# Up to this size, and to MAX_MEMBERS values, a body is read in less time than a thread takes to begin.
LIGHT_BYTES = 64 * 1024
_STRING_REST = re.compile(r'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_PIECE_CHARS = 2**20  # of a string, at a time: other threads wait meanwhile

T = TypeVar("T")
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


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
        self.plain: Any = None

    async def json(self) -> Any:
        """Return the body as the model that the route asks for; `plain` is the JSON that it came as."""
        raw = await self.body()
        read = partial(_read, raw, self._field)
        try:
            self.plain, validated = await self._beside(read) if self._is_heavy(raw) else read()
        except (FarmError, RequestValidationError) as error:
            raise _Refused(error) from None
        return validated

    async def _beside(self, read: Callable[[], T]) -> T:
        desk: Desk = self.app.state.desk
        caller: Caller | None = getattr(self.state, "caller", None)
        return await desk.rooms.bodies.run(caller.owner if caller else NOBODY, read)

    def _is_heavy(self, raw: bytes) -> bool:
        expands = getattr(self._field.field_info.annotation, "EXPANDS", False)
        return expands or len(raw) > LIGHT_BYTES or sum(map(raw.count, (b",", b"[", b"{"))) > MAX_MEMBERS


class _Refused(HTTPException):
    """Carries an error through FastAPI, which lets no other kind out of a body that it reads."""

    def __init__(self, error: Exception) -> None:
        super().__init__(422)
        self.error = error


def parsed(raw: bytes) -> Any:
    """Parse JSON. Raises `RequestValidationError` for an absurd number of members or values, `ValueError` for what is no JSON."""
    text = raw.decode(json.detect_encoding(raw), "surrogatepass")
    # Commas and brackets in strings count too: enough to pass nearly every body, in a few milliseconds for the largest.
    if sum(text.count(mark) for mark in ",[{") > MAX_VALUES and _values(text) > MAX_VALUES:
        raise _absurd(f"has more than {MAX_VALUES:,} values; send less at once")
    return json.loads(text, object_hook=_bounded, parse_int=_integer if len(raw) > LIGHT_BYTES else None)


def _read(raw: bytes, field: Any) -> tuple[Any, Any]:
    """Return a body as plain JSON, and as the model of a field. Raises `RequestValidationError`, `ValueError`."""
    plain = parsed(raw)
    validated, faults = field.validate(plain, {}, loc=("body",))
    if faults:
        raise RequestValidationError(faults)
    return plain, validated


def _bounded(members: dict[str, Any]) -> dict[str, Any]:
    if len(members) > MAX_MEMBERS:
        raise _absurd(f"has an object of {len(members):,} members; an object may have {MAX_MEMBERS:,}")
    return members


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _values(text: str) -> int:
    """Count the values of JSON, up to one too many. What stands in strings does not count."""
    count, at = 1, 0
    while at < len(text) and count <= MAX_VALUES:
        quote = text.find('"', at)
        end = len(text) if quote < 0 else quote
        count += sum(text.count(mark, at, end) for mark in ",[{")
        at = _string_end(text, end + 1)
    return count


def _string_end(text: str, at: int) -> int:
    """Return the place after the closing quote of a string whose text begins at `at`."""
    while at < len(text) and text[at] != '"':
        end = _STRING_REST.match(text, at, at + _PIECE_CHARS).end()  # type: ignore[union-attr]  # it matches nothing, too
        if end == at:
            return len(text)  # a backslash at the very end
        at = end
    return at + 1


def _absurd(message: str) -> RequestValidationError:
    return RequestValidationError([{"type": "too_long", "loc": ("body",), "msg": message}])
