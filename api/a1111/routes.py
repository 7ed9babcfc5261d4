"""All A1111 routes in one router, with their errors for the OpenAPI document."""

import re
from typing import Any

from fastapi.routing import APIRoute
from pydantic import BaseModel

from api.a1111 import agent_scheduler, extras, generation, listings, options_routes, progress_routes
from api.openapi import camel_case
from api.routing import Router

PREFIX = {"sdapi", "v1"}


class Refusal(BaseModel):
    """An error: `detail` has the reason of a refusal, `errors` that of a failure."""

    error: str
    detail: str
    body: str
    errors: str


class FieldRefusal(BaseModel):
    """The error of one field of the body."""

    loc: list[str]
    msg: str
    type: str


class FieldRefusals(BaseModel):
    """The errors of the fields of the body."""

    detail: list[FieldRefusal]


RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal},
    401: {"model": Refusal},
    404: {"model": Refusal},
    422: {"model": FieldRefusals | Refusal},
    500: {"model": Refusal},
    503: {"model": Refusal},
}


def operation_id(route: APIRoute) -> str:
    """Return the name by which generated clients call a route: its method and path, as `a1111PostTxt2img`."""
    words = re.findall(r"[A-Za-z0-9]+", route.path)
    (method,) = route.methods or {"GET"}
    return camel_case("a1111", method.lower(), *(word for word in words if word not in PREFIX))


router = Router(
    tags=["AUTOMATIC1111"],
    responses=RESPONSES,
    strict_content_type=False,
    generate_unique_id_function=operation_id,
)
for part in (generation, progress_routes, options_routes, listings, extras, agent_scheduler):
    router.include_router(part.router)
