"""Bodies as their clients sent them, and digests by which one that is sent again is known."""

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request


@dataclass(frozen=True, slots=True)
class Sent:
    """A JSON body as it came, and the path that it came to."""

    path: str
    body: bytes

    @property
    def digest(self) -> str:
        """Return the SHA-256, in hex, of the JSON, whatever its whitespace and the order of its keys."""
        # Not of the model that it was validated into: a release that adds a field, changes a default or reads a value otherwise
        # would take the same bytes for another body.
        canonical = json.dumps(json.loads(self.body), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


async def _sent(request: Request) -> Sent:
    return Sent(request.scope["path"], await request.body())


SentDep = Annotated[Sent, Depends(_sent)]
