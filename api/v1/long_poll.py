"""How long a client wants to wait: `Prefer: wait=N` (RFC 7240) or `?wait=N`, in whole seconds."""

import re
from typing import Annotated

from fastapi import Depends, Header, Query, Response

MAX_WAIT_S = 60
_WAIT = re.compile(r"\s*wait\s*=\s*\"?(\d{1,9})\"?\s*(?:;.*)?", re.IGNORECASE)


def preferred(prefer: list[str]) -> int:
    """Return the wait of `Prefer` headers, at most `MAX_WAIT_S`. As the RFC says, what is not understood is ignored."""
    for preference in ",".join(prefer).split(","):
        found = _WAIT.fullmatch(preference)
        if found:
            return min(int(found[1]), MAX_WAIT_S)
    return 0


def _wait_s(
    wait: Annotated[
        int | None,
        Query(ge=0, le=MAX_WAIT_S, description="Hold the answer until the job is final, at most so many seconds."),
    ] = None,
    prefer: Annotated[
        list[str] | None, Header(description="`wait=N` does as `?wait=N`.", examples=["wait=30"], max_length=20)
    ] = None,
    *,
    response: Response,
) -> int:
    if wait is not None:
        return wait
    wait_s = preferred(prefer or [])
    if wait_s:
        response.headers["Preference-Applied"] = f"wait={wait_s}"
    return wait_s


WaitS = Annotated[int, Depends(_wait_s)]
