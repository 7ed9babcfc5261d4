"""Liveness and readiness probes."""

from fastapi import Response
from pydantic import BaseModel

from api.desk import DeskDep
from api.routing import Router

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
async def readyz(desk: DeskDep, response: Response) -> Readiness:
    """Ask Postgres, Redis and the storage; 503 if one of them is down, within five seconds.

    Redis must take a write, not only answer.
    """
    complaints = await desk.dependencies.complaints()
    dependencies = {
        name: Dependency(ok=not complaint, detail=complaint or "answers") for name, complaint in complaints.items()
    }
    ready = all(dependency.ok for dependency in dependencies.values())
    response.status_code = 200 if ready else 503
    return Readiness(status="ready" if ready else "unready", dependencies=dependencies)
