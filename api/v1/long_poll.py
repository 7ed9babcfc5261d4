"""Long-poll parameter: `?wait=N` or `Prefer: wait=N` (RFC 7240), in whole seconds."""

import re
from typing import Annotated

from fastapi import Depends, Header, Query, Request, Response

MAX_WAIT_S = 60
_WAIT = re.compile(r"\s*wait\s*=\s*\"?(\d{1,9})\"?\s*(?:;.*)?", re.IGNORECASE)


def preferred_wait_s(prefer: list[str]) -> int:
    """Return the wait in `Prefer` headers, at most `MAX_WAIT_S`; 0 without one. Unknown preferences are ignored (RFC 7240)."""
    for preference in ",".join(prefer).split(","):
        match = _WAIT.fullmatch(preference)
        if match:
            return min(int(match[1]), MAX_WAIT_S)
    return 0


async def _wait_s(
    wait: Annotated[
        int | None,
        Query(ge=0, le=MAX_WAIT_S, description="Seconds to hold the answer, at most, until the job is final."),
    ] = None,
    prefer: Annotated[
        str | None, Header(description="`wait=N` is the same as `?wait=N`.", examples=["wait=30"])
    ] = None,
    *,
    request: Request,
    response: Response,
) -> int:
    if wait is not None:
        return wait
    # Documented as one string, as generated clients send it; there may be several all the same (RFC 9110, 5.3).
    wait_s = preferred_wait_s(request.headers.getlist("prefer")) if prefer else 0
    if wait_s:
        response.headers["Preference-Applied"] = f"wait={wait_s}"
    return wait_s


WaitS = Annotated[int, Depends(_wait_s)]
