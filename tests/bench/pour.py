"""Load generator: submits as fast as the farm accepts, on raw sockets, because a real client would use more CPU than the api."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass(slots=True)
class Poured:
    """What came of it: answers by status, the seconds each took, and all together."""

    statuses: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def per_s(self) -> float:
        return len(self.latencies_s) / self.took_s


async def pour(url: str, body: Mapping[str, Any], *, submits: int, clients: int, keys: Sequence[str] = ()) -> Poured:
    """Send one body `submits` times over `clients` connections, which take the keys in turn."""
    content = json.dumps(body).encode()
    named = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    head = f"POST /v1/jobs HTTP/1.1\r\n{named}\r\n"
    requests = [f"{head}Authorization: Bearer {key}\r\n\r\n".encode() + content for key in keys]
    requests = requests or [f"{head}\r\n".encode() + content]
    poured, left, parts = Poured(), iter(range(submits)), urlsplit(url)

    async def client(request: bytes) -> None:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        for _ in left:
            began = time.perf_counter()
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            poured.latencies_s.append(time.perf_counter() - began)
            poured.statuses[answer.split(b" ", 2)[1].decode()] += 1
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(client(requests[n % len(requests)]) for n in range(clients)))
    poured.took_s = time.perf_counter() - began
    return poured
