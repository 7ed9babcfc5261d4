"""Everything that the dialect answers, gathered for the application and for its section of the documentation."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from api.a1111 import agent_scheduler, extras, generation, listings, options_routes, progress_routes


class Refusal(BaseModel):
    """An error: `detail` says what was refused, `errors` what failed."""

    error: str
    detail: str
    body: str
    errors: str


class FieldRefusal(BaseModel):
    """What is wrong with one field of the body."""

    loc: list[str]
    msg: str
    type: str


class FieldRefusals(BaseModel):
    """What is wrong with the fields of the body."""

    detail: list[FieldRefusal]


RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal},
    401: {"model": Refusal},
    404: {"model": Refusal},
    422: {"model": FieldRefusals | Refusal},
    500: {"model": Refusal},
    503: {"model": Refusal},
}

router = APIRouter(tags=["AUTOMATIC1111 dialect"], responses=RESPONSES, strict_content_type=False)
for part in (generation, progress_routes, options_routes, listings, extras, agent_scheduler):
    router.include_router(part.router)
