"""A line to Postgres on which the answer to what stores jobs is lost, once, when asked for."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

CHUNK_BYTES = 65536
STORES, BEGINS, ENDS = b"INSERT INTO jobs", b"BEGIN", (b"COMMIT", b"ROLLBACK")


class LossyLine:
    """Passes everything on, until `lose` is set: then the next transaction that stores jobs is committed unheard."""

    def __init__(self, port: int) -> None:
        self._upstream = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.lose, self.lost = Event(), Event()

    def serve(self) -> None:
        """Pass connections on until the line is closed."""
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._upstream)
                is_deaf = Event()
                for pump in (self._to_server, self._to_client):
                    Thread(target=pump, args=(client, server, is_deaf), daemon=True).start()

    def close(self) -> None:
        # Closing alone would not wake the thread that accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _to_server(self, client: socket.socket, server: socket.socket, is_deaf: Event) -> None:
        is_begun = stores = False
        with suppress(OSError), server:
            while data := client.recv(CHUNK_BYTES):
                is_begun, stores = is_begun or BEGINS in data, stores or STORES in data
                ends = any(word in data for word in ENDS)
                if stores and (ends or not is_begun) and self.lose.is_set():
                    self.lose.clear()
                    is_deaf.set()
                    self.lost.set()
                if ends or not is_begun:
                    is_begun = stores = False
                server.sendall(data)

    def _to_client(self, client: socket.socket, server: socket.socket, is_deaf: Event) -> None:
        with suppress(OSError), client:
            while data := server.recv(CHUNK_BYTES):
                if not is_deaf.is_set():
                    client.sendall(data)


@contextmanager
def lossy(port: int) -> Iterator[LossyLine]:
    """Open a line to the server on `port` while the block lasts."""
    line = LossyLine(port)
    thread = Thread(target=line.serve)
    thread.start()
    try:
        yield line
    finally:
        line.close()
        thread.join()
