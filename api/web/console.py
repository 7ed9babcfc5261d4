"""Serve the web console: static files at /web, its page at /. The console uses only the public API, /v1.

The limits of its forms are one script made from the schemas of the requests: /openapi.json is too large for every visit.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from pydantic.json_schema import models_json_schema
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import Scope

from api.admission.submissions import HiresChoice, InpaintChoice, LoraChoice, Submission, VariationChoice
from api.admission.sweeps import BatchSubmission
from api.auth.keys import NewKey
from api.desk import DeskDep
from api.routing import Router
from api.v1.jobs import MAX_SEARCH_CHARS
from api.v1.prompts import TokenCounts

FOLDER = Path(__file__).with_name("static")
FORMS = (Submission, VariationChoice, HiresChoice, InpaintChoice, LoraChoice, BatchSubmission, NewKey, TokenCounts)
# Keywords of JSON Schema that forms need.
KEYWORDS = frozenset(
    {"minimum", "exclusiveMinimum", "maximum", "multipleOf", "maxLength", "maxItems", "enum", "default"}
)
# Nothing from elsewhere, nothing inline; pictures come as blobs because an <img> cannot send an API key.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Small files, asked for again at each visit and answered with 304: an upgraded farm never meets half an old console.
    "Cache-Control": "no-cache",
}

router = Router()


@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """Serve the page."""
    return FileResponse(FOLDER / "index.html", headers=HEADERS)


@router.get("/web/js/limits.js", include_in_schema=False)
def script_of_limits(desk: DeskDep) -> Response:
    """Return the limits as a script."""
    found = {**limits(), "search": {"maxLength": MAX_SEARCH_CHARS}, "body": {"bytes": desk.settings.max_body_bytes}}
    return Response(f"export const limits = {json.dumps(found)};\n", media_type="text/javascript", headers=HEADERS)


@cache
def limits() -> Mapping[str, Mapping[str, Any]]:
    """Return the limits of each field of the forms, by schema and field, as in the OpenAPI document."""
    _, document = models_json_schema([(form, "validation") for form in FORMS])
    schemas = document["$defs"]
    return {
        form.__name__: {name: _limits(field, schemas) for name, field in schemas[form.__name__]["properties"].items()}
        for form in FORMS
    }


def _limits(field: Mapping[str, Any], schemas: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of a field, with those of its optional value, its items and its named schema."""
    inner = [one for one in field.get("anyOf", ()) if one.get("type") != "null"]
    if "items" in field:
        inner.append(field["items"])
    if "$ref" in field:
        inner.append(schemas[field["$ref"].rpartition("/")[2]])
    found: dict[str, Any] = {}
    for one in inner:
        found |= _limits(one, schemas)
    return found | {name: value for name, value in field.items() if name in KEYWORDS}


def install(app: FastAPI) -> None:
    """Mount the static files."""
    # Not around the whole api: a stream of events must not wait for a compressor, and pictures are compressed already.
    app.mount("/web", GZipMiddleware(_Files(directory=FOLDER), minimum_size=500), name="web")


class _Files(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Any:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response
