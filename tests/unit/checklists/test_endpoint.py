"""An endpoint is served, described, walked by the tests of tenants and of odd requests, and has its method in a client.

"How to add" in ARCHITECTURE.md. What it answers, `tests/integration/api/test_fuzz.py` holds against the document.
"""

import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import pytest
from fastapi import APIRouter
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

import api
from api.cli.client import FarmClient
from api.client import AsyncFarm, ClientError, Farm
from api.json_bodies import JsonRoute
from api.limits.workrooms import Workrooms
from api.main import create_app
from api.routing import USUAL, SeatedRoute
from tests.support.parts import ROOT
from tests.support.servers import Handler, Server

HIDDEN = {
    "/": "the console, for browsers",
    "/web/js/limits.js": "a script of the console",
}
# What paths name: the tests of tenants and of odd requests make one of each of these, and need none of the others.
MADE_BY_TESTS = {"job_id", "batch_id", "endpoint_id", "delivery_id", "upload_id"}
NOT_MADE = {
    "index": "counts the images of a job",
    "field": "one of the two pictures that a job may start from",
    "key_id": "admins alone may ask, about anyone's",
    "worker_id": "of the farm, not of an owner",
    "task_id": "in the dialect, of a session",
}


def routes() -> Iterator[APIRoute]:
    """Yield the routes of every router in `api`, served or not."""
    for found in pkgutil.walk_packages(api.__path__, "api."):
        if not found.name.endswith("__main__"):
            for router in vars(importlib.import_module(found.name)).values():
                if isinstance(router, APIRouter):
                    yield from (route for route in router.routes if isinstance(route, APIRoute))


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app().openapi()


def test_every_route_is_served(document: dict[str, Any]) -> None:
    for route in routes():
        where = f"{route.endpoint.__module__}.{route.endpoint.__name__}"
        served = {verb.upper() for verb in document["paths"].get(route.path, ())}
        assert not route.include_in_schema or set(route.methods or ()) <= served, (
            f"{where} is not served: name it in api/main.py"
        )


def test_every_body_is_read_beside_the_loop() -> None:
    plain = {route.path for route in routes() if route.body_field and not isinstance(route, JsonRoute)}
    assert not plain, (
        "their routers need route_class=JsonRoute, or a large body holds up the event loop, and stays in memory"
    )


def test_every_route_is_in_the_document() -> None:
    hidden = {route.path for route in routes() if not route.include_in_schema}
    assert hidden == HIDDEN.keys(), "what the OpenAPI document leaves out, neither clients nor the walks over it know"


def test_every_route_is_summed_up_and_described() -> None:
    for route in routes():
        assert route.description, f"{route.path}: its function has no docstring, which is its description"
        assert route.summary or not route.include_in_schema, f"{route.path} has no summary"


def test_every_id_in_a_path_is_tried_by_others_than_its_owner(document: dict[str, Any]) -> None:
    named = {name for path in document["paths"] for name in re.findall(r"{(\w+)}", path)}
    new = named - MADE_BY_TESTS - NOT_MADE.keys()
    assert not new, f"{new}: make one in tests/integration/api/test_tenants.py and test_fuzz.py, and name it here"
    for test in ("test_tenants.py", "test_fuzz.py"):
        text = (ROOT / "tests/integration/api" / test).read_text()
        assert not {name for name in MADE_BY_TESTS if f'"{name.removesuffix("_id")}"' not in text}, test


def test_every_handler_keeps_to_its_room() -> None:
    """What blocks runs on threads of a workroom, of which an owner has a share; all else is the event loop's."""
    for route in routes():
        where = f"{route.endpoint.__module__}.{route.endpoint.__name__}"
        assert isinstance(route, SeatedRoute), f"{where}: its router is none of api/routing.py"
        room = getattr(route.endpoint, "room", USUAL)
        assert room in Workrooms.__slots__, f"{where}: api/limits/workrooms.py has no {room!r}"
        for call in _calls(route.dependant):
            assert (
                inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call) or not inspect.isroutine(call)
            ), f"{where}: {call.__qualname__} would run on a thread that all share; make it async"


def test_nobody_takes_a_thread_that_all_share() -> None:
    for file in (ROOT / "api").rglob("*.py"):
        found = re.search(r"run_in_threadpool|iterate_in_threadpool|asyncio\.to_thread", file.read_text())
        assert not found, (
            f"{file.relative_to(ROOT)}: {found and found[0]}; take a place in a room of api/limits/workrooms.py"
        )


def _calls(dependant: Dependant) -> Iterator[Callable[..., Any]]:
    if dependant.call is not None:
        yield dependant.call
    for inner in dependant.dependencies:
        yield from _calls(inner)


ID = "019a96d0-5b1e-7c3f-9d2a-3f1c5d7e9b01"
Calls = Mapping[str, Callable[[Any], Any]]
# How each client asks an endpoint.
OF_FARM: Calls = {
    "POST /v1/jobs": lambda farm: farm.submit(prompt="a cat"),
    "GET /v1/jobs": lambda farm: next(farm.jobs()),
    "GET /v1/jobs/{job_id}": lambda farm: farm.job(ID),
    "POST /v1/jobs/{job_id}/cancel": lambda farm: farm.cancel(ID),
    "GET /v1/jobs/{job_id}/inputs/{field}": lambda farm: farm.input(ID),
    "GET /v1/jobs/{job_id}/events": lambda farm: next(farm.stream(ID)),
    "POST /v1/batches": lambda farm: farm.submit_batch(jobs=[]),
    "GET /v1/batches/{batch_id}": lambda farm: farm.batch(ID),
    "POST /v1/batches/{batch_id}/cancel": lambda farm: farm.cancel_batch(ID),
    "GET /v1/batches/{batch_id}/jobs": lambda farm: farm.batch_jobs(ID),
    "GET /v1/checkpoints": lambda farm: farm.checkpoints(),
    "POST /v1/uploads": lambda farm: farm.upload(b"picture"),
    "PUT /v1/uploads/{upload_id}/content": lambda farm: farm.upload(b"picture"),
}
OF_THE_COMMAND_LINE: Calls = {
    "POST /v1/jobs/{job_id}/retry": lambda client: client.retry(ID),
    "POST /v1/jobs/retry": lambda client: client.retry_many(limit=1),
    "DELETE /v1/jobs/{job_id}": lambda client: client.delete(ID),
    "GET /v1/jobs/{job_id}/images/{index}": lambda client: client.image(f"/v1/jobs/{ID}/images/0"),
    "GET /v1/batches/{batch_id}/sheet": lambda client: client.sheet(ID),
    "POST /v1/workers/{worker_id}/drain": lambda client: client.drain(ID),
    "POST /v1/workers/{worker_id}/resume": lambda client: client.drain(ID, resume=True),
    "GET /v1/workers": lambda client: client.listing("/v1/workers", "workers"),
    "GET /v1/queue": lambda client: client.document("/v1/queue"),
}
PUT_FOR_THOSE_WITHOUT_KEYS = "clients submit under an idempotency key instead"
FOR_BROWSERS = "the console shows it; programs fetch the images"
BY_OPERATORS = "set up once, by `farm keys`, curl or the console"
LISTED = "a list to choose from; a program knows what it asks for"
WITHOUT_CLIENT = {
    "PUT /v1/jobs/{job_id}": PUT_FOR_THOSE_WITHOUT_KEYS,
    "GET /v1/jobs/{job_id}/images/{index}/thumbnail": FOR_BROWSERS,
    "GET /v1/jobs/{job_id}/images/{index}/preview": FOR_BROWSERS,
    "GET /v1/batches": LISTED,
    "GET /v1/batches/{batch_id}/images.zip": FOR_BROWSERS,
    **dict.fromkeys(("GET /v1/loras", "GET /v1/embeddings", "GET /v1/vaes", "GET /v1/samplers"), LISTED),
    "POST /v1/prompts/tokens": "the console counts while one types",
    "GET /v1/throughput": FOR_BROWSERS,
    "GET /v1/events": "a feed that a receiver of webhooks catches up by",
}
OPERATED = ("/v1/keys", "/v1/webhooks/")


def test_every_endpoint_has_its_method_in_a_client(document: dict[str, Any]) -> None:
    known = {*OF_FARM, *OF_THE_COMMAND_LINE, *WITHOUT_CLIENT}
    endpoints = {
        f"{verb.upper()} {path}"
        for path, item in document["paths"].items()
        if path.startswith("/v1/") and not path.startswith(OPERATED)
        for verb in item
    }
    for endpoint in endpoints - known:
        pytest.fail(
            f"{endpoint}: no client calls it; api/client/sans_io.py, farm.py, asynchronous.py, and name it here"
        )
    assert known == endpoints


class Absent(Handler):
    """Announces uploads and has nothing else."""

    def do_GET(self) -> None:
        self.remember()
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.path == "/v1/uploads":
            self.answer(201, json.dumps({"id": ID, "upload_url": f"/v1/uploads/{ID}/content"}).encode())
        else:
            self.answer(404, b'{"status": 404, "code": "not_found", "detail": "no"}')

    def do_POST(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.do_GET()

    def do_DELETE(self) -> None:
        self.do_GET()


@pytest.fixture(scope="module")
def desk() -> Iterator[Server]:
    server = Server(Absent)
    yield server
    server.stop()


@pytest.mark.parametrize(
    ("client", "endpoint", "call"),
    [(client, *row) for client, calls in ((Farm, OF_FARM), (FarmClient, OF_THE_COMMAND_LINE)) for row in calls.items()],
)
def test_the_method_calls_the_endpoint(desk: Server, client: Any, endpoint: str, call: Callable[[Any], Any]) -> None:
    desk.asked.clear()
    with client(desk.url) as farm, suppress(ClientError):
        call(farm)
    verb, path = endpoint.split()
    expected = re.compile(f"{verb} {re.sub(r'{[a-z_]+}', '[^/?]+', path)}(\\?.*)?")
    assert any(expected.fullmatch(asked) for asked, *_ in desk.asked), (
        f"asked for {[asked for asked, *_ in desk.asked]}"
    )


def test_the_two_clients_are_one_with_and_without_await() -> None:
    for name, method in inspect.getmembers(Farm, inspect.isfunction):
        if name.startswith("_"):
            continue
        other = getattr(AsyncFarm, name, None)
        assert other, f"AsyncFarm has no {name}: api/client/asynchronous.py"
        assert inspect.signature(method).parameters == inspect.signature(other).parameters, (
            f"{name} takes other parameters"
        )
    assert not {name for name in vars(AsyncFarm) if name[0] != "_"} - set(vars(Farm))
