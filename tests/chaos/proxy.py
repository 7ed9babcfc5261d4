"""TCP proxies with faults on request: black holes, slow bodies, HTTP 500s, and traps for an upload.

Each proxy stands before one engine. One thread runs all proxies; any thread may change their behaviour.
"""

import asyncio
import re
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from typing import Any

CHUNK_BYTES = 65536
SLOW_CHUNK_BYTES, SLOW_PAUSE_S = 512, 0.1
TRAP_PAUSE_S = 0.1  # for the engine to store what it has got
UPLOAD = re.compile(rb"PUT /[^/ ]+/jobs/([0-9a-f-]{36})/(\d+)/")
ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

OnUpload = Callable[[str], None]


class Mode(Enum):
    """How a proxy treats its connections."""

    PASS = "pass"
    HOLE = "hole"  # half-open: accepts and acknowledges, forwards nothing, says nothing
    SLOW = "slow"
    ERRORS = "errors"  # answers every HTTP request with a 500


class Proxy:
    """One engine's door. A connection that met a hole is broken off when the hole closes, as a network does."""

    def __init__(self, loop: asyncio.AbstractEventLoop, upstream: tuple[str, int]) -> None:
        self._loop = loop
        self._upstream = upstream
        self._mode = Mode.PASS
        self._healed = asyncio.Event()
        self._trap: tuple[str, OnUpload] | None = None
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()
        self.port = 0

    @contextmanager
    def misbehaving(self, mode: Mode) -> Iterator[None]:
        """Treat connections so while the block lasts."""
        self._on_loop(self._set(mode))
        try:
            yield
        finally:
            self._on_loop(self._set(Mode.PASS))

    def trap(self, moment: str, spring: OnUpload) -> None:
        """At the next upload, `spring` with the job's id: amid its body ("upload") or when it is stored ("stored")."""
        self._trap = (moment, spring)

    def disarm(self) -> bool:
        """Take the trap away; whether it was still there."""
        was, self._trap = self._trap, None
        return was is not None

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _on_loop(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=10)

    async def _set(self, mode: Mode) -> None:
        self._mode = mode
        if mode is Mode.PASS:
            self._healed.set()
            self._healed = asyncio.Event()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # either side may break off at any time; a cancel ends the suite
        finally:
            self._open.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode is Mode.HOLE:
            await self._healed.wait()
            return
        inner_reader, inner_writer = await asyncio.open_connection(*self._upstream)
        trapped = asyncio.Event()
        try:
            pumps = [
                asyncio.create_task(self._to_engine(reader, inner_writer, writer, trapped)),
                asyncio.create_task(self._to_client(inner_reader, writer, trapped)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            inner_writer.close()

    async def _to_engine(
        self,
        reader: asyncio.StreamReader,
        engine: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
        trapped: asyncio.Event,
    ) -> None:
        trap: tuple[str, OnUpload] | None = None
        job = ""
        while data := await reader.read(CHUNK_BYTES):
            if self._mode is Mode.HOLE:
                await self._healed.wait()
                return
            if self._mode is Mode.ERRORS:
                client.write(ERROR)
                await client.drain()
                return
            body = data
            if self._trap is not None and (found := UPLOAD.match(data)):
                trap, self._trap, job = self._trap, None, found[1].decode()
                body = data.partition(b"\r\n\r\n")[2]  # empty while the client waits to be told to continue
            if trap is not None and body:
                trapped.set()
                await self._spring(trap, job, engine, data[: len(data) - len(body) // 2], data)
                return
            await self._send(engine, data)

    async def _spring(
        self, trap: tuple[str, OnUpload], job: str, engine: asyncio.StreamWriter, part: bytes, whole: bytes
    ) -> None:
        moment, spring = trap
        engine.write(whole if moment == "stored" else part)
        await engine.drain()
        await asyncio.sleep(TRAP_PAUSE_S)
        await asyncio.get_running_loop().run_in_executor(None, spring, job)

    async def _to_client(
        self, engine: asyncio.StreamReader, client: asyncio.StreamWriter, trapped: asyncio.Event
    ) -> None:
        while data := await engine.read(CHUNK_BYTES):
            if self._mode is Mode.HOLE or trapped.is_set():
                await self._healed.wait()
                return
            await self._send(client, data)

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        if self._mode is Mode.SLOW:
            for begin in range(0, len(data), SLOW_CHUNK_BYTES):
                writer.write(data[begin : begin + SLOW_CHUNK_BYTES])
                await asyncio.sleep(SLOW_PAUSE_S)
        else:
            writer.write(data)
        await writer.drain()


@contextmanager
def before(*ports: int) -> Iterator[list[Proxy]]:
    """Run a proxy before each engine on this machine, in order."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="proxies")
    thread.start()
    proxies = [Proxy(loop, ("127.0.0.1", port)) for port in ports]
    try:
        for proxy in proxies:
            asyncio.run_coroutine_threadsafe(proxy.open(), loop).result(timeout=10)
        yield proxies
    finally:
        for proxy in proxies:
            with suppress(OSError):
                asyncio.run_coroutine_threadsafe(proxy.close(), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
