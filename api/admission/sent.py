"""Bodies as their clients sent them, and digests by which one that is sent again is known."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends

from api.annex import json_text
from api.json_bodies import JsonRequest


@dataclass(frozen=True, slots=True)
class Sent:
    """The JSON of a body, and the path that it came to. Of a heavy one its large strings and its digest are known already."""

    path: str
    body: Any
    large: Sequence[str] = ()
    known_digest: str | None = None

    @property
    def digest(self) -> str:
        """Return the SHA-256, in hex, of the JSON, whatever its whitespace and the order of its keys."""
        # Not of the model that it was validated into: a release that adds a field, changes a default or reads a value otherwise
        # would take the same bytes for another body.
        return self.known_digest or json_text.digest(self.body, comma=",", colon=":")


async def _sent(request: JsonRequest) -> Sent:
    # Without the prefix of the proxy by which it came this time.
    path, body = request.scope["path"].removeprefix(request.scope["root_path"]), request.parsed
    return Sent(path, body.plain, body.large, body.digest) if body else Sent(path, None)


SentDep = Annotated[Sent, Depends(_sent)]
