"""Small real HTTP servers on loopback for tests of clients."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpcore

LOOPBACK = "127.0.0.1"


class Dialler(httpcore.SyncBackend):
    """Notes what is dialled and puts a server of ours there."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.dialled: list[str] = []

    def connect_tcp(self, host: str, _port: int, *rest: Any) -> httpcore.NetworkStream:
        self.dialled.append(host)
        return super().connect_tcp(LOOPBACK, self.port, *rest)


class Server(ThreadingHTTPServer):
    """A loopback server that remembers what it was asked."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__((LOOPBACK, 0), handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[tuple[str, str, str | None]] = []
        self.thread = Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self.thread.join()


class Handler(BaseHTTPRequestHandler):
    server: Any
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def remember(self) -> None:
        self.server.asked.append((f"{self.command} {self.path}", self.headers["Host"], self.headers["Authorization"]))

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
