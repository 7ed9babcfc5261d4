"""Is the api alive, and can it work? For load balancers, orchestrators and people."""

from collections.abc import Callable

from fastapi import APIRouter, Response
from pydantic import BaseModel

from api.desk import DeskDep
from shared.errors import FarmError
from shared.infra import broker

router = APIRouter(tags=["operations"])


class Dependency(BaseModel):
    """Whether one dependency answers, and what it said if not."""

    ok: bool
    detail: str


class Readiness(BaseModel):
    """`ready` when every dependency answers."""

    status: str
    dependencies: dict[str, Dependency]


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """Say that this process answers. Touches nothing else."""
    return {"status": "alive"}


@router.get("/readyz", responses={503: {"model": Readiness}})
def readyz(desk: DeskDep, response: Response) -> Readiness:
    """Ask every dependency; 503 names those that are down."""
    dependencies = {
        "postgres": _ask(desk.db.ping),
        "redis": _ask(lambda: broker.ping(desk.redis)),
        "storage": _ask(desk.storage.ping),
    }
    ready = all(dependency.ok for dependency in dependencies.values())
    response.status_code = 200 if ready else 503
    return Readiness(status="ready" if ready else "unready", dependencies=dependencies)


def _ask(ping: Callable[[], None]) -> Dependency:
    try:
        ping()
    except FarmError as error:
        return Dependency(ok=False, detail=str(error))
    return Dependency(ok=True, detail="answers")
