"""Bodies as their clients sent them, and digests by which one that is sent again is known."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends

from api.json_bodies import JsonRequest

# Of a text, at a time: to encode the largest at once would keep other threads waiting for a tenth of a second.
_PIECE_CHARS = 2**20


@dataclass(frozen=True, slots=True)
class Sent:
    """The JSON of a body, and the path that it came to."""

    path: str
    body: Any

    @property
    def digest(self) -> str:
        """Return the SHA-256, in hex, of the JSON, whatever its whitespace and the order of its keys."""
        # Not of the model that it was validated into: a release that adds a field, changes a default or reads a value otherwise
        # would take the same bytes for another body.
        return digest(self.body, comma=",", colon=":")


def digest(value: Any, *, comma: str = ", ", colon: str = ": ") -> str:
    """Return the SHA-256, in hex, of what `json.dumps(value, sort_keys=True)` makes of a JSON value, in no more memory."""
    made = hashlib.sha256()
    for piece in _encoded(value, comma, colon):
        made.update(piece.encode())
    return made.hexdigest()


def _encoded(value: Any, comma: str, colon: str) -> Iterator[str]:
    if isinstance(value, str):
        yield '"'
        for at in range(0, len(value), _PIECE_CHARS):
            yield json.dumps(value[at : at + _PIECE_CHARS])[1:-1]
        yield '"'
    elif isinstance(value, dict):
        yield "{"
        for index, name in enumerate(sorted(value)):
            yield f"{comma if index else ''}{json.dumps(name)}{colon}"
            yield from _encoded(value[name], comma, colon)
        yield "}"
    elif isinstance(value, list):
        yield "["
        for index, inner in enumerate(value):
            if index:
                yield comma
            yield from _encoded(inner, comma, colon)
        yield "]"
    else:
        yield json.dumps(value)


async def _sent(request: JsonRequest) -> Sent:
    # Without the prefix of the proxy by which it came this time.
    return Sent(request.scope["path"].removeprefix(request.scope["root_path"]), request.plain)


SentDep = Annotated[Sent, Depends(_sent)]
