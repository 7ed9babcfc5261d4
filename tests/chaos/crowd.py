"""Clients that get in each other's way: a crowd that reads one thing, bodies that never end. Bounded in number and time."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError

READERS = 60
PARKED = 16
BODY_BYTES = 32 * 2**20
TIMEOUT_S = 20.0
PAUSE_S = 0.5


@contextmanager
def reading(url: str, path: str) -> Iterator[None]:
    """Have sixty clients fetch a path again and again while the block lasts."""
    over = threading.Event()
    http = urllib3.PoolManager(timeout=TIMEOUT_S, retries=False, maxsize=READERS)

    def read() -> None:
        while not over.is_set():
            with suppress(HTTPError):
                http.request("GET", f"{url}{path}", redirect=False)
            over.wait(PAUSE_S)

    readers = [threading.Thread(target=read, name=f"reader-{number}") for number in range(READERS)]
    for reader in readers:
        reader.start()
    try:
        yield
    finally:
        over.set()
        for reader in readers:
            reader.join()
        http.clear()


@contextmanager
def parked_bodies(url: str) -> Iterator[None]:
    """Begin the largest bodies, send a megabyte of each, and say nothing more while the block lasts. Raises `OSError`."""
    parts = urlsplit(url)
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
    begun = f"{head}Content-Length: {BODY_BYTES}\r\n\r\n".encode() + b" " * 2**20
    with ExitStack() as stack:
        for _ in range(PARKED):
            client = stack.enter_context(socket.create_connection((parts.hostname, parts.port or 80), TIMEOUT_S))
            client.sendall(begun)
        yield
