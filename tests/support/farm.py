"""A running farm as its clients see it, parts of which may be down while they restart."""

from collections.abc import Callable
from threading import Event
from typing import Any

import httpx

from tests.support.waiting import LIMIT_S

BODY = {"prompt": "a red circle on a blue background", "width": 128, "height": 128, "steps": 8}
TICK = Event()  # never set: `TICK.wait` is the polling interval of the things that only polling can see


def until(what: Callable[[], Any], deadline_s: float = LIMIT_S) -> Any:
    """Return the first true result; a part that is down while it restarts counts as not yet."""
    for _ in range(int(deadline_s / 0.1)):
        try:
            if found := what():
                return found
        except httpx.TransportError:
            pass
        TICK.wait(0.1)
    raise AssertionError(f"not within {deadline_s} s")


def submit(http: httpx.Client, **changes: Any) -> str:
    def accepted() -> str | None:
        response = http.post("/v1/jobs", json={**BODY, **changes})
        return response.json()["id"] if response.status_code == 202 else None

    job_id: str = until(accepted)
    return job_id


def ended(http: httpx.Client, job_id: str) -> dict[str, Any]:
    def final() -> dict[str, Any] | None:
        response = http.get(f"/v1/jobs/{job_id}")
        if response.status_code != 200:
            assert response.status_code == 503
            return None
        job: dict[str, Any] = response.json()
        return job if job["state"] not in {"queued", "running"} else None

    job: dict[str, Any] = until(final)
    return job
