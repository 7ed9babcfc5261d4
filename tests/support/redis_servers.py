"""Redis servers of a test's own, one of them behind TLS, and what was said to it on the wire."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Thread

import pytest

from deploy.standalone import ports
from deploy.standalone.farm import engines_only
from tests.packages import program
from tests.support.waiting import until

LOCAL = "127.0.0.1"
HELLO = b"\x16\x03"  # what a TLS connection begins with


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """Run a Redis; yields its URL."""
    elsewhere = {"FARM_DATABASE_URL": "postgresql://elsewhere", "FARM_S3_ENDPOINT_URL": "http://elsewhere"}
    with engines_only(folder / "farm", elsewhere) as env:
        yield env["FARM_REDIS_URL"]


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate that signs itself, for one host name, and its key."""

    cert: Path
    key: Path

    @classmethod
    def made(cls, folder: Path, host: str) -> "Certificate":
        """Make one with openssl, valid for two days."""
        made = cls(folder / f"{host}.crt", folder / f"{host}.key")
        about = ["-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}", "-days", "2"]
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(made.key)]
        openssl = ["openssl", "req", "-x509", *key, *about, "-out", str(made.cert)]
        subprocess.run(openssl, check=True, capture_output=True, timeout=60)
        return made


@contextmanager
def behind_tls(port: int, certificate: Certificate, folder: Path, client: Certificate | None = None) -> Iterator[int]:
    """Run stunnel before a server of this machine; yields the port that speaks TLS, to one client alone if it is given."""
    stunnel = program("stunnel4") or program("stunnel")
    if stunnel is None:
        pytest.skip("there is no stunnel")
    door = ports.pick(LOCAL)
    config = folder / "stunnel.conf"
    service = f"accept = {LOCAL}:{door}\nconnect = {LOCAL}:{port}\ncert = {certificate.cert}\nkey = {certificate.key}\n"
    only = f"CAfile = {client.cert}\nverifyPeer = yes\n" if client else ""
    config.write_text(f"foreground = yes\npid =\n[redis]\n{service}{only}")
    with (folder / "stunnel.log").open("wb") as log:
        running = subprocess.Popen([stunnel, str(config)], stdout=log, stderr=log)
    try:
        assert until(lambda: _listens(door)), (folder / "stunnel.log").read_text()
        yield door
    finally:
        running.terminate()
        running.wait(60)


@dataclass(frozen=True, slots=True)
class Wire:
    """A relay before a server that keeps what clients said, by connection."""

    port: int
    said: list[bytearray] = field(default_factory=list)

    def openings(self) -> set[bytes]:
        """The first two bytes of each connection."""
        return {bytes(said[:2]) for said in self.said if said}

    def has_heard(self, word: str) -> bool:
        """Whether a word went over the wire in plain text."""
        return any(word.encode() in said for said in self.said)


@contextmanager
def tapped(port: int) -> Iterator[Wire]:
    """Run a relay before a server of this machine."""

    class Relay(BaseRequestHandler):
        def handle(self) -> None:
            said = bytearray()
            wire.said.append(said)
            with socket.create_connection((LOCAL, port)) as server:
                back = Thread(target=_pass_on, args=(server, self.request, bytearray()))
                back.start()
                _pass_on(self.request, server, said)
                back.join()

    with ExitStack() as closing:
        relay = closing.enter_context(_Relays((LOCAL, 0), Relay))
        closing.callback(relay.shutdown)
        wire = Wire(relay.server_address[1])
        Thread(target=relay.serve_forever, kwargs={"poll_interval": 0.05}).start()
        yield wire


class _Relays(ThreadingTCPServer):
    daemon_threads = True


def _pass_on(source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
    """Pass bytes on until a side ends, and tell the other side so."""
    with suppress(OSError):  # either side may break off
        while data := source.recv(65536):
            kept += data
            sink.sendall(data)
    for side in (source, sink):
        with suppress(OSError):  # it may have gone already
            side.shutdown(socket.SHUT_RDWR)


def _listens(port: int) -> bool:
    with socket.socket() as knocking:
        return knocking.connect_ex((LOCAL, port)) == 0
