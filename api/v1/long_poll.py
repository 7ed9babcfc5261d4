"""Long-poll parameter: `?wait=N` or `Prefer: wait=N` (RFC 7240), in whole seconds."""

import re
from typing import Annotated

from fastapi import Depends, Header, Query, Response

MAX_WAIT_S = 60
_WAIT = re.compile(r"\s*wait\s*=\s*\"?(\d{1,9})\"?\s*(?:;.*)?", re.IGNORECASE)


def preferred_wait_s(prefer: list[str]) -> int:
    """Return the wait in `Prefer` headers, at most `MAX_WAIT_S`; 0 without one. Unknown preferences are ignored (RFC 7240)."""
    for preference in ",".join(prefer).split(","):
        match = _WAIT.fullmatch(preference)
        if match:
            return min(int(match[1]), MAX_WAIT_S)
    return 0


def _wait_s(
    wait: Annotated[
        int | None,
        Query(ge=0, le=MAX_WAIT_S, description="Seconds to hold the answer, at most, until the job is final."),
    ] = None,
    prefer: Annotated[
        list[str] | None, Header(description="`wait=N` is the same as `?wait=N`.", examples=["wait=30"], max_length=20)
    ] = None,
    *,
    response: Response,
) -> int:
    if wait is not None:
        return wait
    wait_s = preferred_wait_s(prefer or [])
    if wait_s:
        response.headers["Preference-Applied"] = f"wait={wait_s}"
    return wait_s


WaitS = Annotated[int, Depends(_wait_s)]
