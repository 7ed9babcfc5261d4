"""The wire between a client and its farm: carries talks out over HTTP, blocking or on an event loop. Every call has a timeout."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

import httpx
from httpx_sse import EventSource

from api.client import problems
from api.client.event_stream import EventStream, News
from api.client.problems import ClientError
from api.client.sans_io import Exchange, HttpRequest, Pause, checked_key, checked_url

CONNECT_S, ANSWER_S = 5.0, 30.0
# A proxy meant for the outside world cannot reach this machine's loopback.
_NEVER_PROXIED = {"all://127.0.0.1": None, "all://localhost": None, "all://[::1]": None}

T = TypeVar("T")


class HttpTransport:
    """Carries talks out on the calling thread. May be shared by threads."""

    def __init__(self, url: str, api_key: str | None, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._sleep = sleep
        self._key = key_header(api_key)
        self.http = httpx.Client(**_connection(url))

    def carry(self, talk: Exchange[T]) -> T:
        """Have a talk to its end and return what it came to. Raises `ClientError`."""
        try:
            step = next(talk)
            while True:
                try:
                    answer = self._carry_out(step)
                except ClientError as error:
                    step = talk.throw(error)
                else:
                    step = talk.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    def _carry_out(self, step: HttpRequest | Pause) -> Any:
        if isinstance(step, Pause):
            return self._sleep(step.seconds)
        try:
            return self.http.request(**_request(step, self._key))
        except httpx.RequestError as error:
            raise problems.of_transport(error, str(self.http.base_url)) from error

    def tell(self, story: EventStream) -> Iterator[News]:
        """Yield a story's news until it is over, over as many connections as it takes. Raises `ClientError`."""
        while not story.is_over:
            try:
                with self.http.stream(**_request(story.call(), self._key)) as response:
                    if not response.is_success:
                        response.read()
                        problems.refuse(response)
                    for event in EventSource(response).iter_sse():
                        if (news := story.heard(event)) is not None:
                            yield news
                if not story.is_over:
                    self._sleep(story.broke())
            except httpx.RequestError as error:
                self._sleep(story.broke(problems.of_transport(error, str(self.http.base_url))))
            except ClientError as error:
                self._sleep(story.broke(error))


class AsyncHttpTransport:
    """Carries talks out on the running event loop."""

    def __init__(
        self, url: str, api_key: str | None, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._sleep = sleep
        self._key = key_header(api_key)
        self.http = httpx.AsyncClient(**_connection(url))

    async def carry(self, talk: Exchange[T]) -> T:
        """Have a talk to its end and return what it came to. Raises `ClientError`."""
        try:
            step = next(talk)
            while True:
                try:
                    answer = await self._carry_out(step)
                except ClientError as error:
                    step = talk.throw(error)
                else:
                    step = talk.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _carry_out(self, step: HttpRequest | Pause) -> Any:
        if isinstance(step, Pause):
            return await self._sleep(step.seconds)
        try:
            return await self.http.request(**_request(step, self._key))
        except httpx.RequestError as error:
            raise problems.of_transport(error, str(self.http.base_url)) from error

    async def tell(self, story: EventStream) -> AsyncIterator[News]:
        """Yield a story's news until it is over, over as many connections as it takes. Raises `ClientError`."""
        while not story.is_over:
            try:
                async with self.http.stream(**_request(story.call(), self._key)) as response:
                    if not response.is_success:
                        await response.aread()
                        problems.refuse(response)
                    async for event in EventSource(response).aiter_sse():
                        if (news := story.heard(event)) is not None:
                            yield news
                if not story.is_over:
                    await self._sleep(story.broke())
            except httpx.RequestError as error:
                await self._sleep(story.broke(problems.of_transport(error, str(self.http.base_url))))
            except ClientError as error:
                await self._sleep(story.broke(error))


def key_header(api_key: str | None) -> dict[str, str]:
    """Return the header that carries a key to the farm, and to nobody else."""
    return {"Authorization": f"Bearer {checked_key(api_key)}"} if api_key else {}


def _connection(url: str) -> dict[str, Any]:
    return {
        "base_url": checked_url(url),
        "timeout": httpx.Timeout(ANSWER_S, connect=CONNECT_S),
        "mounts": _NEVER_PROXIED,
        "follow_redirects": False,
    }


def _request(call: HttpRequest, key: dict[str, str]) -> dict[str, Any]:
    is_ours = call.path.startswith("/")  # else an address of the storage that the farm has signed
    return {
        "method": call.method,
        "url": call.path,
        "json": call.json,
        "content": call.content,
        "params": call.params,
        "headers": {**(key if is_ours else {}), **(call.headers or {})},
        "timeout": httpx.Timeout(ANSWER_S + call.hold_s, connect=CONNECT_S),
        "follow_redirects": call.follows,
    }
