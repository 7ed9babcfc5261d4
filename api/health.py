"""Liveness and readiness probes."""

from collections.abc import Callable

import structlog
from fastapi import Response
from pydantic import BaseModel

from api.desk import DeskDep
from api.routing import Router, in_room
from shared.errors import BrokerUnavailable, FarmError
from shared.infra import broker

log = structlog.get_logger(__name__)
router = Router(tags=["operations"])


class Dependency(BaseModel):
    """Whether a dependency answers, or why not."""

    ok: bool
    detail: str


class Readiness(BaseModel):
    """`status` is `ready` if every dependency answers, else `unready`."""

    status: str
    dependencies: dict[str, Dependency]


@router.get("/healthz", summary="Liveness")
async def healthz() -> dict[str, str]:
    """Answer 200 while this process runs. Asks no dependency and waits for no thread."""
    return {"status": "alive"}


@router.get("/readyz", summary="Readiness", responses={503: {"model": Readiness}})
@in_room("probes")
def readyz(desk: DeskDep, response: Response) -> Readiness:
    """Ask Postgres, Redis and the storage; 503 if one of them is down. Redis must take a write, not only answer."""
    dependencies = {
        "postgres": _ask(desk.db.ping),
        "redis": _ask(lambda: broker.check(desk.redis)),
        "storage": _ask(desk.storage.ping),
    }
    ready = all(dependency.ok for dependency in dependencies.values())
    response.status_code = 200 if ready else 503
    return Readiness(status="ready" if ready else "unready", dependencies=dependencies)


def _ask(ping: Callable[[], None]) -> Dependency:
    try:
        ping()
    except FarmError as error:
        # Anyone may ask: what else it said, with names and addresses, is for the log.
        log.warning("dependency.away", **error.log_fields)
        told = error if isinstance(error, BrokerUnavailable) else type(error)()
        return Dependency(ok=False, detail=f"{told} Fix: {error.fix}." if error.fix else str(told))
    return Dependency(ok=True, detail="answers")
