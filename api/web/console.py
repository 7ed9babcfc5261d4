"""The console: static files at /web and one page at /. It is a client of /v1 like any other and knows nothing more."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import Scope

FOLDER = Path(__file__).with_name("static")
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

router = APIRouter()


@router.get("/", include_in_schema=False)
def page() -> FileResponse:
    """Return the page."""
    return FileResponse(FOLDER / "index.html", headers=HEADERS)


@router.head("/", include_in_schema=False)
def present() -> None:
    """Answer clients that ask whether there is a server."""


def install(app: FastAPI) -> None:
    """Serve the page's files."""
    # Not around the whole api: a stream of events must not wait for a compressor, and pictures are compressed already.
    app.mount("/web", GZipMiddleware(_Files(directory=FOLDER), minimum_size=500), name="web")


class _Files(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Any:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response
