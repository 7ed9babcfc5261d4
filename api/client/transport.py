"""HTTP transports that run the sans-IO client, blocking or on an event loop. Every request has a timeout."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

import httpx
from httpx_sse import EventSource

from api.client import problems
from api.client.event_stream import EventStream, StreamEvent
from api.client.problems import ClientError
from api.client.sans_io import Exchange, HttpRequest, Pause, checked_key, checked_url

CONNECT_S, ANSWER_S = 5.0, 30.0
# A proxy meant for the outside world cannot reach this machine's loopback.
_NEVER_PROXIED = {"all://127.0.0.1": None, "all://localhost": None, "all://[::1]": None}

T = TypeVar("T")


class HttpTransport:
    """Runs exchanges on the calling thread. Threads may share one."""

    def __init__(self, url: str, api_key: str | None, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._sleep = sleep
        self._key = key_header(api_key)
        self.http = httpx.Client(**_connection(url))

    def run(self, exchange: Exchange[T]) -> T:
        """Drive the generator and return its result. Raises `ClientError`."""
        try:
            step = next(exchange)
            while True:
                try:
                    response = self._perform(step)
                except ClientError as error:
                    step = exchange.throw(error)
                else:
                    step = exchange.send(response)
        except StopIteration as end:
            result: T = end.value
            return result

    def _perform(self, step: HttpRequest | Pause) -> Any:
        if isinstance(step, Pause):
            return self._sleep(step.seconds)
        try:
            return self.http.request(**_request(self.http.base_url, step, self._key))
        except httpx.RequestError as error:
            raise problems.of_transport(error, str(self.http.base_url)) from error

    def stream(self, events: EventStream) -> Iterator[StreamEvent]:
        """Yield a job's events until its last, reconnecting as often as needed. Raises `ClientError`."""
        while not events.is_over:
            try:
                with self.http.stream(**_request(self.http.base_url, events.request(), self._key)) as response:
                    if not response.is_success:
                        response.read()
                        problems.raise_for_problem(response)
                    for event in EventSource(response).iter_sse():
                        if (received := events.receive(event)) is not None:
                            yield received
                if not events.is_over:
                    self._sleep(events.backoff_s())
            except httpx.RequestError as error:
                self._sleep(events.backoff_s(problems.of_transport(error, str(self.http.base_url))))
            except ClientError as error:
                self._sleep(events.backoff_s(error))


class AsyncHttpTransport:
    """Runs exchanges on the running event loop."""

    def __init__(
        self, url: str, api_key: str | None, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._sleep = sleep
        self._key = key_header(api_key)
        self.http = httpx.AsyncClient(**_connection(url))

    async def run(self, exchange: Exchange[T]) -> T:
        """Drive the generator and return its result. Raises `ClientError`."""
        try:
            step = next(exchange)
            while True:
                try:
                    response = await self._perform(step)
                except ClientError as error:
                    step = exchange.throw(error)
                else:
                    step = exchange.send(response)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _perform(self, step: HttpRequest | Pause) -> Any:
        if isinstance(step, Pause):
            return await self._sleep(step.seconds)
        try:
            return await self.http.request(**_request(self.http.base_url, step, self._key))
        except httpx.RequestError as error:
            raise problems.of_transport(error, str(self.http.base_url)) from error

    async def stream(self, events: EventStream) -> AsyncIterator[StreamEvent]:
        """Yield a job's events until its last, reconnecting as often as needed. Raises `ClientError`."""
        while not events.is_over:
            try:
                async with self.http.stream(**_request(self.http.base_url, events.request(), self._key)) as response:
                    if not response.is_success:
                        await response.aread()
                        problems.raise_for_problem(response)
                    async for event in EventSource(response).aiter_sse():
                        if (received := events.receive(event)) is not None:
                            yield received
                if not events.is_over:
                    await self._sleep(events.backoff_s())
            except httpx.RequestError as error:
                await self._sleep(events.backoff_s(problems.of_transport(error, str(self.http.base_url))))
            except ClientError as error:
                await self._sleep(events.backoff_s(error))


def key_header(api_key: str | None) -> dict[str, str]:
    """Return the Authorization header of an API key. Send it to the farm only."""
    return {"Authorization": f"Bearer {checked_key(api_key)}"} if api_key else {}


def _connection(url: str) -> dict[str, Any]:
    return {
        "base_url": checked_url(url),
        "timeout": httpx.Timeout(ANSWER_S, connect=CONNECT_S),
        "mounts": _NEVER_PROXIED,
        "follow_redirects": False,
    }


def _request(base: httpx.URL, request: HttpRequest, key: dict[str, str]) -> dict[str, Any]:
    is_api = request.path.startswith("/")  # else an address of the storage that the farm has signed
    return {
        "method": request.method,
        "url": _within(base, request.path),
        "json": request.json,
        "content": request.content,
        "params": request.params,
        "headers": {**(key if is_api else {}), **(request.headers or {})},
        "timeout": httpx.Timeout(ANSWER_S + request.hold_s, connect=CONNECT_S),
        "follow_redirects": request.follow_redirects,
    }


def _within(base: httpx.URL, path: str) -> str:
    """Return a path of the farm as httpx puts it beneath the base URL: the farm's links begin with the path of that already."""
    return path[len(base.path) - 1 :] if path.startswith(base.path) else path
