"""`python -m tests.bench.nuisance BEHAVIOUR URL KEY`: one client that misbehaves in one way until its standard input ends.

Bounded in number and size. Prints a line once it is at it. It leaves the cores to the other processes of this machine, so that
what its neighbours feel is the farm's doing.
"""

import asyncio
import base64
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.support.factories import DEMO, png

BODY_BYTES = 32 * 2**20
PARKED, HELD, MEMBERS, COUNTS, READERS, RECEIVERS = 16, 64, 300_000, 60, 60, 200
# No worker serves it: jobs of it only wait.
ELSEWHERE = "elsewhere"
EDITS = "".join(f"[a{n}:b:{n % 150}] " for n in range(700))[:10_000]
PAUSE_S = 1.0

Do = Callable[["Nuisance"], Awaitable[None]]


class Nuisance:
    """A client with a key, which may keep as many connections as it likes."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.key = key
        limits = httpx.Limits(max_connections=None)
        headers = {"Authorization": f"Bearer {key}"}
        self.http = httpx.AsyncClient(base_url=url, headers=headers, timeout=300, limits=limits)

    async def send(self, method: str, path: str, **content: object) -> httpx.Response | None:
        """Send a request; None if the farm broke it off, which is its right."""
        try:
            return await self.http.request(method, path, **content)  # type: ignore[arg-type]
        except httpx.TransportError:
            return None

    async def insist(self, method: str, path: str, **content: object) -> Any:
        """Send a request until it is served, and return its JSON."""
        while True:
            answer = await self.send(method, path, **content)
            if answer is not None and answer.is_success:
                return answer.json()
            await asyncio.sleep(PAUSE_S)

    async def forever(self, method: str, path: str, **content: object) -> None:
        """Send one request after another; after a refusal wait a moment, as even a bad client does."""
        while True:
            answer = await self.send(method, path, **content)
            if answer is None or answer.status_code in {429, 503}:
                await asyncio.sleep(PAUSE_S)


async def parked_bodies(me: Nuisance) -> None:
    """Announce the largest bodies, send most of each, and say nothing more."""
    parts = urlsplit(me.url)
    head = (
        f"POST /v1/jobs HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {me.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {BODY_BYTES}\r\n\r\n"
    ).encode()

    async def park() -> None:
        while True:
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            try:
                writer.write(head)
                for _ in range(31):
                    writer.write(b" " * 2**20)
                    await writer.drain()
                await reader.read()
            except OSError:
                pass
            writer.close()
            await asyncio.sleep(PAUSE_S)

    await asyncio.gather(*(park() for _ in range(PARKED)))


async def held_calls(me: Nuisance) -> None:
    """Have large img2img calls held behind a queue that does not move."""
    picture = base64.b64encode(png("#808080") + bytes(3 * 2**20)).decode()
    body = json.dumps(
        {
            "prompt": "x",
            "init_images": [picture],
            "override_settings": {"sd_model_checkpoint": ELSEWHERE},
            "width": 64,
            "height": 64,
            "steps": 1,
        }
    )
    kind = {"Content-Type": "application/json"}
    await asyncio.gather(*(me.forever("POST", "/sdapi/v1/img2img", content=body, headers=kind) for _ in range(HELD)))


async def unknown_fields(me: Nuisance) -> None:
    """Send objects of hundreds of thousands of members that no schema knows."""
    body = "{" + ",".join(f'"a{n}":1' for n in range(MEMBERS)) + "}"
    kind = {"Content-Type": "application/json"}
    await asyncio.gather(*(me.forever("POST", "/v1/prompts/tokens", content=body, headers=kind) for _ in range(4)))


async def token_counts(me: Nuisance) -> None:
    """Have prompts counted that take long to read."""
    wanted = {"prompt": EDITS, "negative_prompt": EDITS, "steps": 150}
    await asyncio.gather(*(me.forever("POST", "/v1/prompts/tokens", json=wanted) for _ in range(COUNTS)))


async def readers(me: Nuisance) -> None:
    """Fetch thumbnails, sheets and zips of a batch of one's own, all at once."""
    job = {"prompt": "x", "checkpoint": DEMO, "width": 256, "height": 256, "steps": 1, "num_images": 4}
    batch = await me.insist("POST", "/v1/batches", json={"jobs": [job] * 16})
    while batch["state"] == "unfinished":
        await asyncio.sleep(PAUSE_S)
        batch = await me.insist("GET", f"/v1/batches/{batch['id']}")
    first = (await me.insist("GET", f"/v1/batches/{batch['id']}/jobs"))["jobs"][0]["id"]
    paths = (
        f"/v1/jobs/{first}/images/0/thumbnail",
        f"/v1/batches/{batch['id']}/sheet",
        f"/v1/batches/{batch['id']}/images.zip",
    )
    await asyncio.gather(*(me.forever("GET", paths[n % len(paths)]) for n in range(READERS)))


async def silent_receivers(me: Nuisance) -> None:
    """Have webhooks sent to as many origins as one may name, none of which ever answers."""
    async with _silence() as port:
        jobs = [
            {
                "prompt": "x",
                "checkpoint": ELSEWHERE,
                "webhook": {"url": f"http://127.9.{n // 250}.{n % 250 + 1}:{port}/", "events": ["job.canceled"]},
            }
            for n in range(RECEIVERS)
        ]
        while True:
            batch = await me.send("POST", "/v1/batches", json={"jobs": jobs})
            if batch is not None and batch.status_code == 202:
                await me.send("POST", f"/v1/batches/{batch.json()['id']}/cancel")
            await asyncio.sleep(PAUSE_S)


@asynccontextmanager
async def _silence() -> AsyncIterator[int]:
    """Listen on all addresses of loopback that are named, on one port; accept, and never answer."""

    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)

    first = await asyncio.start_server(silent, "127.9.0.1", 0)
    port = first.sockets[0].getsockname()[1]
    hosts = [f"127.9.{n // 250}.{n % 250 + 1}" for n in range(1, RECEIVERS)]
    others = await asyncio.start_server(silent, hosts, port)
    async with first, others:
        yield port


async def flood(me: Nuisance) -> None:
    """Submit as fast as the farm accepts, over many connections."""
    job = {"prompt": "x", "checkpoint": ELSEWHERE}
    await asyncio.gather(*(me.forever("POST", "/v1/jobs", json=job) for _ in range(16)))


BEHAVIOURS: dict[str, Do] = {
    one.__name__: one
    for one in (parked_bodies, held_calls, unknown_fields, token_counts, readers, silent_receivers, flood)
}


async def main(behaviour: str, url: str, key: str) -> None:
    """Misbehave until standard input ends."""
    os.nice(10)
    over = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    doing = asyncio.ensure_future(BEHAVIOURS[behaviour](Nuisance(url, key)))
    print("at it", flush=True)  # noqa: T201 - the signal
    done, _ = await asyncio.wait([over, doing], return_when=asyncio.FIRST_COMPLETED)
    if doing in done:
        doing.result()  # raises what went wrong
    os._exit(0)  # with all that it holds open


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
